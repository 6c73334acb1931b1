"""Write a transformers folder as one GGUF file, one tensor at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    quant_shape_to_byte_shape,
    quantize,
)

from runner.core.errors import RunnerError
from runner.core.progress import Progress
from runner.export.gguf import architecture
from runner.export.gguf.kinds import WRITTEN, tensor_type
from runner.export.gguf.tokenizer import add_tokenizer
from runner.export.tensors import CheckpointTensors

_FACTORS = "rope_freqs.weight"


def write_gguf(file: Path, source: Path, config: Any, tokenizer: Any, kind: str, title: str) -> list[str]:
    """Write the model in ``source`` as a ``file`` of the given kind, and return warnings.

    ``title`` is the name by which programs show it. Raises ``RunnerError`` for a weight that has no place in
    the file. At most one tensor is in memory.
    """
    stored = CheckpointTensors(source)
    names = _names(config, stored)
    writer = GGUFWriter(file, architecture.name(config))
    try:
        writer.add_type("model")
        writer.add_name(title)
        writer.add_file_type(WRITTEN[kind])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        architecture.add_shape(writer, config)
        add_tokenizer(writer, tokenizer, config.vocab_size)
        types = _announce(writer, config, stored, names, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with Progress(f"writing {file.name}", len(types)) as progress:
            for name, values in _tensors(config, stored, names):
                writer.write_tensor_data(quantize(values.float().contiguous().numpy(), types[name]))
                progress.advance()
    finally:
        writer.close()
    return _warnings(kind, types)


def _names(config: Any, stored: CheckpointTensors) -> dict[str, str]:
    """The stored tensors by their names in the file. Raises ``RunnerError``."""
    name_of = architecture.TensorNames(config)
    names: dict[str, str] = {}
    for tensor in stored:
        if tensor == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = name_of(tensor)
        if name is None:
            raise RunnerError(f"{tensor} has no place in a GGUF file of a {config.model_type} model")
        names[name] = tensor
    return names


def _announce(
    writer: GGUFWriter, config: Any, stored: CheckpointTensors, names: dict[str, str], kind: str
) -> dict[str, GGMLQuantizationType]:
    """Say which tensors will follow; their types by name."""
    types: dict[str, GGMLQuantizationType] = {}
    for name, shape in _shapes(config, stored, names):
        found = types[name] = tensor_type(kind, name, shape, "output.weight" not in names)
        block, size = GGML_QUANT_SIZES[found]
        # of bytes the writer wants the shape as it is in the file, of numbers that of the tensor
        number = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(found)
        written = shape if number else quant_shape_to_byte_shape(shape, found)
        count = math.prod(shape) // block * size
        writer.add_tensor_info(name, written, np.dtype(number or np.uint8), count, raw_dtype=found)
    return types


def _shapes(
    config: Any, stored: CheckpointTensors, names: dict[str, str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    factors = architecture.frequency_factors(config)
    if factors is not None:
        yield _FACTORS, tuple(factors.shape)
    for name, tensor in names.items():
        yield name, tuple(stored[tensor].shape)


def _tensors(
    config: Any, stored: CheckpointTensors, names: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    factors = architecture.frequency_factors(config)
    if factors is not None:
        yield _FACTORS, factors
    for name, tensor in names.items():
        yield name, architecture.reorder(config, tensor, stored[tensor])


def _warnings(kind: str, types: dict[str, GGMLQuantizationType]) -> list[str]:
    """Which matrices are of another type than the kind says."""
    wanted = GGMLQuantizationType[kind.upper()]
    others = Counter(
        found.name for found in types.values() if found not in (wanted, GGMLQuantizationType.F32)
    )
    reasons = {"F16": "its rows cannot be cut into blocks of 32", "Q8_0": "it projects to the vocabulary"}
    return [
        f"{count} of {len(types)} tensors written as {name}: {reasons[name]}"
        for name, count in others.items()
    ]
