"""The weights of bitsandbytes' 4-bit layers in a training step: from packed numbers to 16 bits in one kernel.

Where scales are quantised too (double quantisation), bitsandbytes takes three: one for the scales, one that
adds their mean, one for the weight. On an H200 ours takes half their time, and a step of Qwen3-1.7B over NF4
at 1 x 512 tokens 19 ms in place of 22, of Qwen3-4B 34 in place of 39; the losses are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch

from runner.speed.four_bit_kernel import NESTED_BLOCK, dequantize

_MOST = 2**31  # weights: from there on, 32 bits do not count them

_library: Any = bitsandbytes
_MATMUL = _library.matmul_4bit


def matmul_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    quant_state: Any,
    out: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``bitsandbytes.matmul_4bit``, x [..., in] to [..., out], by our kernel where that knows the weight."""
    if out is not None or not _is_ours(A, bias, quant_state):
        return _MATMUL(A, B, quant_state, out=out, bias=bias)
    scales = (quant_state.absmax, None, None, None)
    if (nested := quant_state.state2) is not None:
        scales = (quant_state.absmax, nested.code, nested.absmax, quant_state.offset)
    rows, columns = quant_state.shape
    return _FrozenProduct.apply(A, bias, B, *scales, quant_state.code, rows, columns, quant_state.blocksize)


def _is_ours(x: torch.Tensor, bias: torch.Tensor | None, state: Any) -> bool:
    weights = state.shape.numel()
    return (
        x.is_cuda
        and (bias is None or not bias.requires_grad)
        and (len(state.shape) == 2 and x.shape[-1] == state.shape[1])
        and (weights % state.blocksize == 0 and weights < _MOST)
        and (state.state2 is None or state.state2.blocksize == NESTED_BLOCK)
    )


class _FrozenProduct(torch.autograd.Function):
    """``x W^T + bias`` of a frozen W, which the backward pass unpacks again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, *weight: Any) -> torch.Tensor:
        ctx.weight = weight
        return torch.ops.runner.linear_4bit(x, bias, *weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        weight = torch.ops.runner.dequantize_4bit(*ctx.weight, gradient.dtype)
        return gradient @ weight, *[None] * 10


def _linear(x: torch.Tensor, bias: torch.Tensor | None, *weight: Any) -> torch.Tensor:
    return torch.nn.functional.linear(x, torch.ops.runner.dequantize_4bit(*weight, x.dtype), bias)


# Two operations, of which compiled code sees nothing but the shapes: did it see that both passes unpack the
# same weight, it would keep that in 16 bits. Not by ``custom_op``, around which torch puts more Python.
_WEIGHT = (
    "Tensor packed, Tensor absmax, Tensor? nested_code, Tensor? nested_absmax, Tensor? offset, Tensor code, "
    "int rows, int columns, int block"
)
_ANYWHERE = "CompositeExplicitAutograd"
torch.library.define("runner::linear_4bit", f"(Tensor x, Tensor? bias, {_WEIGHT}) -> Tensor")
torch.library.define("runner::dequantize_4bit", f"({_WEIGHT}, ScalarType dtype) -> Tensor")
torch.library.impl("runner::linear_4bit", _ANYWHERE, _linear)
torch.library.impl("runner::dequantize_4bit", _ANYWHERE, dequantize)


@torch.library.register_fake("runner::linear_4bit")
def _(x: torch.Tensor, *weight: Any) -> torch.Tensor:
    rows = weight[-3]
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.register_fake("runner::dequantize_4bit")
def _(packed: torch.Tensor, *rest: Any) -> torch.Tensor:
    rows, columns, _, dtype = rest[-4:]
    return packed.new_empty((rows, columns), dtype=dtype)
