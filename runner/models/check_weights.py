"""Whether a checkpoint is the model that its config describes: every tensor there, of its shape, and finite.

transformers draws what is missing at random and says so in a table; a run would train on noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runner.core.errors import ConfigError, Issue

if TYPE_CHECKING:
    from runner.models.base import Base


def check_report(base: Base, report: Any, classes: list[str] | None) -> list[str]:
    """Check what transformers reports of loading: missing, unexpected and mismatched keys.

    Returns a warning about tensors that the model has no place for. Raises ``ConfigError`` for missing ones
    and those of another shape.
    """
    heads = ("score.", "classifier.") if classes is not None else ()
    for name, *shapes in report["mismatched_keys"]:
        if not name.startswith(heads):
            there, here = (list(shape) for shape in shapes)
            message = f"{base.folder}: {name} has the shape {there}, and its config.json describes {here}"
            raise ConfigError(Issue("model.path", message, "a checkpoint and a config of the same model"))
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(heads))
    if missing:
        message = f"{base.folder} lacks {_listed(missing)}, which would be drawn at random"
        hint = "a whole checkpoint of this architecture; or does its config.json belong to another model?"
        raise ConfigError(Issue("model.path", message, hint))
    left = sorted(report["unexpected_keys"])
    if classes is not None:
        left = [name for name in left if not name.startswith("lm_head.")]  # a new head takes its place
    if not left:
        return []
    return [f"{base.folder} has {_listed(left)} without a place in {type(base.config).__name__}: left out"]


def check_finite(model: Any, where: str) -> None:
    """Raises ``ConfigError`` if a weight is NaN or infinite, as numbers beyond 65,504 are in float16."""
    broken = [name for name, tensor in _weights(model) if not _is_finite(tensor)]
    if broken:
        kind = str(next(t.dtype for name, t in _weights(model) if name == broken[0])).removeprefix("torch.")
        hint = (
            "trainer.precision=bf16 or fp32, if its weights are too large for float16"
            if kind == "float16"
            else ""
        )
        message = f"NaN or infinity, in {kind}, in {_listed(broken)}"
        raise ConfigError(Issue("model.path", f"{where}: {message}", hint))


def _weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Weights with numbers in floating point, and the scales of those that have been quantised."""
    # a weight in e4m3 is known by its scales: those of a row that is not finite are not either
    scales_of_fp8 = ((name, each) for name, each in model.named_buffers() if name.endswith(".weight_scale"))
    for name, parameter in itertools.chain(model.named_parameters(), scales_of_fp8):
        scales = getattr(parameter, "quant_state", None)
        tensor = getattr(scales, "absmax", None) if scales is not None else parameter.data
        if tensor is None or tensor.is_meta or not tensor.is_floating_point():
            continue
        if tensor.element_size() > 1:
            yield name, tensor


def _is_finite(tensor: Any) -> bool:
    import torch

    if not tensor.numel():
        return True
    # the extremes are NaN if anything is, and need no memory, of which isfinite takes that of four copies
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"the tensor {names[0]}{more}"
