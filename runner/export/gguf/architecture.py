"""What a GGUF file says about a model's shape, and how its weights are named and ordered there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map

# Mistral is to llama.cpp a llama; the others have names of their own.
ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
_ROPES = ("default", "linear", "llama3")


def obstacles(config: Any) -> Iterator[str]:
    """What of a model's config cannot be written into a GGUF file of its architecture."""
    if config.model_type not in ARCHITECTURES:
        yield f"no {config.model_type} model can be written, only {', '.join(ARCHITECTURES)}"
        return
    rope = _rope(config)
    if rope["rope_type"] not in _ROPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"its rotary embedding is {rope['rope_type']!r}; {', '.join(_ROPES)} can be written"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act!r}, not 'silu'"
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if sliding or (config.model_type == "mistral" and config.sliding_window):
        yield "its attention is limited to a sliding window"
    if config.model_type == "qwen3" and config.attention_bias:
        yield "its attention has biases"


def name(config: Any) -> str:
    """Name of the architecture in the file."""
    return MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]]


def head_dim(config: Any) -> int:
    """Numbers in a query, key or value of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def add_shape(writer: GGUFWriter, config: Any) -> None:
    """Write the numbers that a reader needs to build the model."""
    size = head_dim(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def frequency_factors(config: Any) -> torch.Tensor | None:
    """By what Llama 3.1 divides each rotary frequency, float32; None for other models.

    A tensor of the file (``rope_freqs``), (half of a head's size,).
    """
    if _rope(config)["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_dim(config)
    plain = _rope(config)["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled


class TensorNames:
    """Names of a model's tensors in the file."""

    def __init__(self, config: Any) -> None:
        self._map = get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)

    def __call__(self, tensor: str) -> str | None:
        """The name in the file; None for one that has no place there."""
        return self._map.get_name(tensor, try_suffixes=(".weight", ".bias"))


def reorder(config: Any, tensor: str, values: torch.Tensor) -> torch.Tensor:
    """The weight or bias as the file's architecture orders it.

    A rotary embedding turns pairs of numbers: transformers pairs the two halves of a head, the llama of a
    file neighbours, so that rows of queries and keys change places; elsewhere both pair halves.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(tensor.split(".")[-2]) if name(config) == "llama" else None
    if count is None:
        return values
    return values.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(values.shape)


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", **(config.rope_parameters or {})}
