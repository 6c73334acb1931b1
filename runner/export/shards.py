"""Write a model's safetensors one tensor at a time, so that no more than two are in memory at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from huggingface_hub import split_state_dict_into_shards_factory

from runner.core.errors import ConfigError, Issue

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"

# Names of the types in a file's header (https://github.com/huggingface/safetensors, "Format").
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

Layout = dict[str, tuple["torch.dtype", tuple[int, ...]]]  # type and shape of each tensor by name, in order


def total_bytes(layout: Layout) -> int:
    """Size of all tensors."""
    return sum(_size(entry) for entry in layout.values())


def plan_shards(layout: Layout, max_shard_size: str) -> dict[str, list[str]]:
    """Files of a model folder with the tensors of each, no file larger than ``max_shard_size`` (``5GB``).

    A tensor larger than that has a file of its own. Raises ``ConfigError`` for a size that cannot be read.
    """
    entries: Any = layout
    try:
        split = split_state_dict_into_shards_factory(
            entries,
            get_storage_size=_size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        where = f"merge.max_shard_size={max_shard_size}"
        raise ConfigError(Issue(where, "is not a size", "a number with KB, MB, GB or TB: 5GB")) from error
    return split.filename_to_tensors


def write_shards(
    folder: Path,
    layout: Layout,
    plan: dict[str, list[str]],
    produce: Callable[[Iterable[str]], Iterator[torch.Tensor]],
) -> None:
    """Write the files of ``plan`` and, of several, their index; ``produce`` makes the tensors by name.

    The next tensor is made while the last one is written.
    """
    tensors = produce(name for names in plan.values() for name in names)
    with ThreadPoolExecutor(1) as pool:
        for file, names in plan.items():
            with (folder / file).open("wb") as stream:
                stream.write(_header(layout, names))
                pending: Future[Any] | None = None
                for name in names:
                    tensor = next(tensors)
                    if (tensor.dtype, tuple(tensor.shape)) != layout[name]:
                        raise ValueError(
                            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {layout[name]}"
                        )
                    if pending is not None:
                        pending.result()
                    pending = pool.submit(_write, stream, tensor)
                    del tensor
                if pending is not None:
                    pending.result()
    if len(plan) > 1:
        files = {name: file for file, names in plan.items() for name in names}
        index = {"metadata": {"total_size": total_bytes(layout)}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(layout: Layout, names: list[str]) -> bytes:
    """Length, then JSON padded with spaces so that the tensors start at a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        dtype, shape = layout[name]
        end = start + _size(layout[name])
        entries[name] = {
            "dtype": _TYPES[str(dtype).removeprefix("torch.")],
            "shape": shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(stream: BinaryIO, tensor: torch.Tensor) -> None:
    import torch

    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    stream.write(plain.numpy().data)


def _size(entry: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = entry
    return math.prod(shape) * dtype.itemsize
