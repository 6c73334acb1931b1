"""What of a model is trained: the tensors that an adapter adds, or the model's own, by name and shape."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError
from runner.models.lora_targets import in_layers, no_default
from runner.plan.architecture import Architecture, Linear

Shape = tuple[int, ...]

# Fields of LoRA that add other tensors than a pair for each layer; PEFT is asked for those.
_ASKED = (
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "velora_config",
)
PLAIN_LORA = "peft.LoraConfig"
SCORE = "score"  # the head of a reward model or a classifier


@dataclass(frozen=True)
class Trained:
    """The trained tensors of a run.

    ``added`` are those that the adapter adds, ``copied`` the copies of whole modules (``modules_to_save``),
    ``own`` tensors of the model that are trained where they are. ``ranks`` are the ranks of LoRA by linear
    layer; ``whole`` says that every weight is trained. ``rebuilt`` are the numbers in weights to which each
    pass adds their update, before it multiplies with the sum.
    """

    added: tuple[Shape, ...] = ()
    copied: tuple[Shape, ...] = ()
    own: tuple[Shape, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    whole: bool = False
    dropout: bool = False
    dora: bool = False
    head: bool = False
    prompt: bool = False
    rebuilt: int = 0

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All trained tensors."""
        return self.added + self.copied + self.own

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(map(prod, self.shapes))


def trained(
    architecture: Architecture, lora: Mapping[str, Any], classes: int | None = None, quantized: bool = False
) -> Trained:
    """What of a model the ``lora`` section trains; with ``classes`` under a new head with those outputs.

    LoRA's tensors follow from the names of the layers of dense decoders; other adapters, and those of other
    models, are put on a model without weights, for which PEFT, and with it torch, is imported. ``quantized``
    says that linear layers are. Raises ``ConfigError`` where PEFT cannot make the adapter.
    """
    if not lora:
        return Trained(own=tuple(_own_shapes(architecture)), whole=True, head=True)
    unknown = not architecture.exact and bool(architecture.facts)
    if unknown or lora.get("_target_") != PLAIN_LORA or any(lora.get(key) for key in _ASKED):
        return _of_peft(architecture, lora, classes, quantized)
    return _of_lora(architecture, lora, classes)


def with_score(architecture: Architecture, classes: int) -> Architecture:
    """The model with a head of ``classes`` outputs in place of the one for tokens."""
    import dataclasses

    kept = [each for each in architecture.linears if each.name != architecture.head]
    score = Linear(SCORE, architecture.hidden, classes)
    return dataclasses.replace(architecture, linears=(*kept, score), head=SCORE, tied=False)


def _of_lora(architecture: Architecture, lora: Mapping[str, Any], classes: int | None) -> Trained:
    added: list[Shape] = []
    ranks: dict[str, int] = {}
    bias, dora = lora.get("bias", "none"), bool(lora.get("use_dora"))
    for each in targets(architecture, lora):
        rank = ranks[each.name] = _rank(lora, each.name)
        added += [(rank, each.inputs), (each.outputs, rank)]
        added += [(each.outputs,)] * (bool(lora.get("lora_bias")) + dora)
    for name, (rows, width) in architecture.embeddings.items():
        if _is_target(lora, name, embedding=True):
            rank = _rank(lora, name)
            added += [(rank, rows), (width, rank)]
    own = [
        (each.outputs,)
        for each in architecture.linears
        if each.bias and (bias == "all" or (bias == "lora_only" and each.name in ranks))
    ]
    if bias == "all":
        own += [(size,) for name, size in architecture.norms.items() if name.endswith(".bias")]
    saved = _listed(lora.get("modules_to_save")) + ([SCORE, "classifier"] if classes else [])
    # PEFT compares the ends of names as they are: "norm" is every norm
    copies = [name for name in architecture.modules() if name.endswith(tuple(saved))]
    copied = [shape for name in copies for shape in _shapes(architecture, name)]
    return Trained(
        added=tuple(added),
        copied=tuple(copied),
        own=tuple(own),
        ranks=ranks,
        dropout=bool(lora.get("lora_dropout")),
        dora=dora,
        head=architecture.head in copies or architecture.head in ranks,
    )


def targets(architecture: Architecture, lora: Mapping[str, Any]) -> Iterator[Linear]:
    """The linear layers that ``target_modules`` and its companions choose, by PEFT's own rules."""
    for each in architecture.linears:
        if each.name != SCORE and _is_target(
            lora, each.name, each.name == architecture.head, kind=architecture.kind
        ):
            yield each


def _is_target(
    lora: Mapping[str, Any], name: str, head: bool = False, embedding: bool = False, kind: str = ""
) -> bool:
    given = lora.get("target_modules")
    if given in (None, "attention"):
        given = [] if embedding else _default(kind)
    excluded = lora.get("exclude_modules")
    if excluded and _matches(excluded, name):
        return False
    if given == "all-linear":
        return not head and not embedding and _in_layers(lora, name)
    return _matches(given, name) and _in_layers(lora, name)


def _default(kind: str) -> list[str]:
    """The layers that PEFT adapts where none are named."""
    if kind not in default_targets():
        raise ConfigError(no_default("target_modules", kind))
    return default_targets()[kind]


def _in_layers(lora: Mapping[str, Any], name: str) -> bool:
    return in_layers(name, lora.get("layers_to_transform"), lora.get("layers_pattern"))


def _matches(given: Any, name: str) -> bool:
    """A string is a regular expression of the whole name, a list has names or ends of names."""
    if isinstance(given, str):
        return re.fullmatch(given, name) is not None
    return _ends(name, given or ())


def _ends(name: str, ends: Any) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _rank(lora: Mapping[str, Any], name: str) -> int:
    patterns = lora.get("rank_pattern") or {}
    return next(
        (int(rank) for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", name)),
        int(lora.get("r") or 8),  # PEFT's default
    )


@cache
def default_targets() -> dict[str, list[str]]:
    """PEFT's table of LoRA's layers by model type, read from its source: importing it takes seconds."""
    found = find_spec("peft")
    assert found is not None
    assert found.origin is not None
    tree = ast.parse((Path(found.origin).parent / "utils" / "constants.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and "LORA_TARGET_MODULES_MAPPING" in ast.unparse(node.targets[0]):
            return ast.literal_eval(node.value)
    return {}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _shapes(architecture: Architecture, name: str) -> Iterator[Shape]:
    """Shapes of the parameters of one module."""
    for each in architecture.linears:
        if each.name == name:
            yield (each.outputs, each.inputs)
            if each.bias:
                yield (each.outputs,)
    if name in architecture.embeddings:
        yield architecture.embeddings[name]
    for key, size in architecture.norms.items():
        if key.rpartition(".")[0] == name:
            yield (size,)


def _own_shapes(architecture: Architecture) -> Iterator[Shape]:
    for each in architecture.linears:
        if not (architecture.tied and each.name == architecture.head):
            yield (each.outputs, each.inputs)
        if each.bias:
            yield (each.outputs,)
    yield from architecture.embeddings.values()
    yield from ((size,) for size in architecture.norms.values())


def _of_peft(
    architecture: Architecture, lora: Mapping[str, Any], classes: int | None, quantized: bool
) -> Trained:
    from runner.plan.built import adapter_shapes

    found = adapter_shapes(architecture, lora, classes, quantized)
    return Trained(
        found.added,
        found.copied,
        found.own,
        found.ranks,
        dropout=bool(lora.get("lora_dropout")),
        prompt=found.prompt,
        rebuilt=found.rebuilt,
    )
