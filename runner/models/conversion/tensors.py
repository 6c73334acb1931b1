"""The tensors of a published checkpoint under the names and in the shapes of a class of transformers."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.atomic import json_text
from runner.core.errors import ConfigError, Issue
from runner.core.progress import Progress
from runner.models.check_files import tensors_only
from runner.models.hub import INDEX

_FREQUENCIES = ".inv_freq"  # tables of rotary frequencies, which are computed anew
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint: the file it is in, its shape and its type (``torch.float16``)."""

    file: Path
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Cut:
    """What becomes of a published tensor: new names, each with its rows of the first axis, in their order."""

    names: tuple[str, ...]
    rows: tuple[int, ...]


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """What a checkpoint's files hold, read from their headers.

    Raises ``ConfigError`` for damaged files and for a tensor that is in two of them.
    """
    found: dict[str, Stored] = {}
    for file in files:
        with opened(file, "meta") as tensors:
            for name, tensor in tensors:
                if name in found:
                    message = f"holds {name}, which is in {found[name].file.name} too"
                    raise ConfigError(Issue(str(file), message, "fetch the checkpoint again"))
                found[name] = Stored(file, tuple(tensor.shape), str(tensor.dtype))
    return found


def plan_cuts(
    layout: Mapping[str, tuple[str, ...]],
    layers: int,
    stored: Mapping[str, Stored],
    wanted: Mapping[str, Shape],
    folder: Path,
) -> dict[str, Cut]:
    """What becomes of each stored tensor: every one of ``wanted`` is made, and every stored one used, once.

    ``layout`` is that of a ``Family``, ``wanted`` are the shapes of the model to be made. Raises
    ``ConfigError`` with all tensors that are missing, of another shape or type, or without a place.
    """
    cuts = {
        source.format(number): tuple(name.format(number) for name in names)
        for source, names in layout.items()
        for number in (range(layers) if "{}" in source else (0,))
    }
    made = [name for names in cuts.values() for name in names]
    assert sorted(made) == sorted(wanted), set(made) ^ set(wanted)
    others = [name for name in stored if name not in cuts and not name.endswith(_FREQUENCIES)]
    problems = {
        "lacks {}": sorted(cuts.keys() - stored.keys()),
        "has {} without a place in this architecture": sorted(others),
    }
    found = [text.format(_listed(names)) for text, names in problems.items() if names]
    plan = {}
    for source in [name for name in cuts if name in stored]:
        shapes = [wanted[name] for name in cuts[source]]
        expected = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        has = stored[source]
        if has.shape != expected:
            found.append(f"{source} has the shape {list(has.shape)}, its config describes {list(expected)}")
        elif "float" not in has.dtype or "float8" in has.dtype:
            found.append(f"{source} is of {has.dtype}: a quantised checkpoint cannot be converted")
        plan[source] = Cut(cuts[source], tuple(shape[0] for shape in shapes))
    if found:
        hint = "a whole checkpoint of this architecture; or does its config.json belong to another model?"
        raise ConfigError([Issue(str(folder), message, hint) for message in found])
    return plan


def check_frequencies(stored: Mapping[str, Stored], base: float, folder: Path) -> None:
    """Raises ``ConfigError`` if a stored table is not that of rotary embeddings with ``base``."""
    import torch

    tables = {name: each.file for name, each in stored.items() if name.endswith(_FREQUENCIES)}
    for file in sorted(set(tables.values())):
        with opened(file, "cpu") as tensors:
            for name, values in tensors:
                if name not in tables:
                    continue
                count = values.numel()
                expected = base ** -(torch.arange(count, dtype=torch.float64) / count)
                # to the rounding of the types in which they are stored
                if not torch.allclose(values.double(), expected, rtol=1e-2, atol=1e-6):
                    message = f"{name} is not the table of rotary frequencies with base {base:g}"
                    raise ConfigError(Issue(str(folder), message, "an unchanged checkpoint"))


def write_tensors(plan: Mapping[str, Cut], stored: Mapping[str, Stored], folder: Path) -> None:
    """Write the planned tensors into ``folder``, a file for each of the checkpoint's, with an index."""
    from safetensors.torch import save_file

    files = sorted({stored[source].file for source in plan})
    total, index, size = len(files), dict[str, str](), 0
    with Progress("converting", len(plan)) as progress:
        for number, file in enumerate(files, 1):
            name = f"model-{number:05d}-of-{total:05d}.safetensors" if total > 1 else "model.safetensors"
            made: dict[str, Any] = {}
            with opened(file, "cpu") as tensors:
                for source, values in tensors:
                    if cut := plan.get(source):
                        parts = values.split(cut.rows)
                        made |= {new: part.clone() for new, part in zip(cut.names, parts, strict=True)}
                        progress.advance()
            size += sum(part.nbytes for part in made.values())
            save_file(made, folder / name, metadata={"format": "pt"})
            index |= dict.fromkeys(made, name)
    if total > 1:
        values = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX).write_text(json_text(values), encoding="utf-8")


@contextmanager
def opened(file: Path, device: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """Names and tensors of a file of weights, safetensors or pickled; on ``meta`` without their values.

    Nothing but tensors is taken from a pickled file. Raises ``ConfigError`` for one that is damaged.
    """
    from safetensors import SafetensorError

    try:
        with tensors_only(file.parent):
            yield _safe(file, device) if file.suffix == ".safetensors" else _pickled(file, device)
    except pickle.UnpicklingError:
        raise
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(Issue(str(file), f"is damaged: {reason}", "fetch it again")) from error


def _safe(file: Path, device: str) -> Iterator[tuple[str, Any]]:
    import torch
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if device == "meta":
                part = tensors.get_slice(name)
                yield name, torch.empty(part.get_shape(), dtype=part[:0].dtype, device="meta")
            else:
                yield name, tensors.get_tensor(name)


def _pickled(file: Path, device: str) -> Iterator[tuple[str, Any]]:
    import torch

    content = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file) or None)
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            yield name, value


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"the tensor {names[0]}{more}"
