"""Attention and LoRA layers of a training step on a CPU, each as one operation of autograd.

On two cores with AVX512-BF16, at 2 x 120 tokens, SDPA's bfloat16 kernel took a quarter of the step of a
model of 135M parameters, for 2% of its arithmetic; casts, sums and Python between the products of LoRA layers
took a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

# An attention function for which transformers makes no mask.
MATMUL = "causal_by_matmul"

# Shares of attention that a layer keeps for its backward pass, 8 MiB of them; from more on they are computed
# again. Twice as many in float32 are made at once.
_KEPT = 2**21
_LONGEST = 256  # tokens: from there on SDPA is as fast, which leaves out what comes after a token


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function, of queries [rows, heads, length, width] and their keys and values."""
    query, key, value = as_autocast(query, key, value)
    length = query.shape[2]
    if dropout or length > _LONGEST or key.shape[2] != length or value.shape[3] != key.shape[3]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return causal_attention(query, key, value, scale).transpose(1, 2).contiguous(), None


def as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In the type that autocast gives SDPA its inputs in, which is not that of all where an embedding is
    trained in float32: positions then make queries and keys float32, and no values."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(each.to(torch.get_autocast_dtype(kind)) for each in tensors)


AttentionInterface.register(MATMUL, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(MATMUL, lambda *args, **kwargs: None)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax attention of each token to those up to itself, as batched matrix products.

    ``query`` is [rows, heads, length, width], ``key`` and ``value`` are [rows, key heads, length, width] of
    the same type; query heads that share a key follow each other. Scores, softmax and their gradients are in
    float32 at least, as in SDPA's kernels.
    """
    with torch.autocast("cpu", enabled=False):
        return _CausalAttention.apply(query, key, value, scale)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows, _, length, width = query.shape
        q = query.reshape(rows * key.shape[1], -1, width)  # [rows x key heads, query heads of each x length]
        k, v = key.reshape(len(q), length, width), value.reshape(len(q), length, width)
        shares = _shares(q, k, scale)
        out = (shares.to(q.dtype) @ v).view(query.shape)
        kept = (shares,) if shares.numel() <= _KEPT else ()
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, *kept = ctx.saved_tensors
        shares = kept[0] if kept else _shares(q, k, ctx.scale)
        g = grad.reshape(q.shape)
        mean = (g * out.reshape(q.shape).to(shares.dtype)).sum(-1, keepdim=True)
        for_scores = torch.bmm(g.to(shares.dtype), v.to(shares.dtype).mT).sub_(mean).mul_(shares)
        for_scores = for_scores.mul_(ctx.scale).to(q.dtype)
        found = for_scores @ k, for_scores.mT @ q, shares.to(q.dtype).mT @ g
        return *(each.view(shape) for each, shape in zip(found, ctx.shapes, strict=True)), None


def _shares(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """What each query [groups, queries, width] takes of each key [groups, length, width]."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    length = k.shape[1]
    scores = torch.bmm(q.to(dtype).mul(scale), k.to(dtype).mT)
    behind = torch.full((length, length), float("-inf"), dtype=dtype).triu_(1)
    scores.view(len(q), -1, length, length).add_(behind)
    return scores.softmax(-1)


class _LoraLinear(torch.autograd.Function):
    """``x W^T + bias + scaling * (x A^T) B^T`` with a frozen W, for x [tokens, in], in the type of W.

    What it gives is no view: autograd lets nobody change a view that a function has made, which models do
    that clip their queries, keys and values in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_A: torch.Tensor,
        lora_B: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        a, b = lora_A.to(weight.dtype), (lora_B * scaling).to(weight.dtype)
        low = x @ a.T
        out = torch.nn.functional.linear(x, weight, bias).addmm_(low, b.T)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling, ctx.dtypes = scaling, (lora_A.dtype, lora_B.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        for_low = grad @ b
        for_a = (for_low.T @ x).to(ctx.dtypes[0])
        for_b = (grad.T @ low).to(ctx.dtypes[1]).mul_(ctx.scaling)
        for_x = (grad @ weight).addmm_(for_low, a) if ctx.needs_input_grad[0] else None
        return for_x, None, None, for_a, for_b, None


def lora_forwards(model: Any) -> list[tuple[Linear, Callable[..., torch.Tensor]]]:
    """The plain LoRA layers of PEFT in ``model``, each with a faster ``forward``."""
    return [(layer, _forward(layer)) for layer in model.modules() if type(layer) is Linear]


@contextmanager
def replaced(forwards: list[tuple[Linear, Callable[..., torch.Tensor]]]) -> Iterator[None]:
    """In this block, each of these layers has its other ``forward``."""
    for layer, forward in forwards:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, _ in forwards:
            del layer.forward


def _forward(layer: Linear) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base, active = layer.base_layer, layer.active_adapters
        if args or kwargs or len(active) != 1 or not _is_plain(layer, active[0], x):
            return Linear.forward(layer, x, *args, **kwargs)
        name = active[0]
        a, b, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        with torch.autocast("cpu", enabled=False):
            out = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, scaling)
        return out.view(*x.shape[:-1], -1)

    return forward


def _is_plain(layer: Linear, name: str, x: torch.Tensor) -> bool:
    """Whether ``_LoraLinear`` gives what the layer would, in its types, with gradients for all it trains."""
    base: Any = layer.base_layer
    computed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return (
        type(base) is torch.nn.Linear
        and base.weight.dtype == computed == x.dtype
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and name in layer.lora_A
        and name not in layer.lora_variant
        and type(layer.lora_dropout[name]) is torch.nn.Identity
        and layer.lora_B[name].bias is None
        and not (layer.disable_adapters or layer.merged)
    )
