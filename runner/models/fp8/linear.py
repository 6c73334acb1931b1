"""A frozen linear layer whose weight is e4m3 with a scale an output row, and both of whose products are e4m3.

``y = x W^T`` and, in the backward pass, ``dx = dy W`` are products of 8-bit numbers on the tensor cores
(``torch._scaled_mm``); what is multiplied with the weight is quantised row by row when it comes. Nothing is
saved for the backward pass but the weight: it is frozen, and has no gradient that would need the input.

torchao's ``Float8Linear`` is not used: it keeps a trainable bf16 weight, quantises it anew in each step and
saves the input for the weight's gradient, and its releases are tied to those of torch. Its "rowwise" recipe
is where the number formats are from (``torchao/float8/config.py``): e4m3 for inputs, weights and gradients
alike, and fast accumulation, without which the row-wise kernels are slow. e5m2 has a bit less of mantissa,
twice the error, for a range that is not needed where every row has a scale. transformers' fine-grained fp8
multiplies in bf16 in the backward pass and takes its kernels from the hub; its fbgemm one does not train.
"""

from __future__ import annotations

from typing import Any

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0  # torch.finfo(E4M3).max, a constant for the compiler
MULTIPLE = 16  # what torch._scaled_mm wants both dimensions of a weight to be a multiple of
_LEAST_SCALE = 2.0**-126  # the smallest normal float32: GPUs may flush smaller ones to 0, and 0 / 0 is NaN


def fits(in_features: int, out_features: int) -> bool:
    """Whether ``torch._scaled_mm`` takes a weight of this shape, in both directions."""
    return in_features % MULTIPLE == 0 and out_features % MULTIPLE == 0


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, k] as e4m3 [n, k] and scales [n, 1] (float32), with ``rows ~ e4m3 * scales``.

    The largest number of each row becomes 448; a row of zeros stays one, one that is not finite becomes NaN.
    """
    wide = rows.float().contiguous()  # as torch._scaled_mm wants its first factor
    scales = (wide.abs().amax(dim=-1, keepdim=True) / E4M3_MAX).clamp(min=_LEAST_SCALE)
    return (wide * (1 / scales)).to(E4M3), scales  # a division for each number takes longer


def scaled_product(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """``(a * a_scale) (b * b_scale)`` of e4m3: a [n, k], a_scale [n, 1], b [k, m], b_scale [1, m].

    It is rounded to bf16, and has the ``dtype`` that is asked for. ``b`` is laid out by columns (the
    transpose of something contiguous), as Hopper's tensor cores want it. Where there is no CUDA, the same
    product is computed in float32.
    """
    if a.is_cuda:
        product = torch._scaled_mm(  # type: ignore[attr-defined]
            a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    else:
        product = (a.float() @ b.float() * a_scale * b_scale).bfloat16()
    # Not through ``to`` in vain: where the forward pass of a Function returns what that gives, torch 2.11
    # compiles a backward pass whose gradient is 0.
    return product if dtype == torch.bfloat16 else product.to(dtype)


class _FrozenProduct(torch.autograd.Function):
    """``x W^T`` of x [n, in] and W [out, in], whose backward pass is the product of the gradient with W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        transposed: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.stored = transposed is not None
        ctx.save_for_backward(weight if transposed is None else transposed, scale)
        rows, row_scale = quantize_rows(x)
        return scaled_product(rows, row_scale, weight.t(), scale.t(), x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        # The weight's scales are of what is summed over here, so they go into the gradient before it is
        # quantised: dx = (dy * scale) W, with the very numbers W of the forward pass and no second set.
        rows, row_scale = quantize_rows(gradient.float() * scale.t())
        columns = (weight if ctx.stored else weight.t().contiguous()).t()
        ones = torch.ones(1, columns.shape[1], device=weight.device)
        return scaled_product(rows, row_scale, columns, ones, gradient.dtype), None, None, None


def weight_tensors(weight: torch.Tensor, transposed_copy: bool) -> dict[str, torch.Tensor]:
    """The tensors of an ``Fp8Linear`` by name, made of a weight [out, in]."""
    codes, scales = quantize_rows(weight)
    found = {"weight": torch.nn.Parameter(codes, requires_grad=False), "weight_scale": scales}
    return found | ({"weight_transposed": codes.t().contiguous()} if transposed_copy else {})


class Fp8Linear(torch.nn.Linear):
    """A frozen linear layer with ``weight`` [out, in] in e4m3 and ``weight_scale`` [out, 1] in float32.

    Inputs [..., in] of any floating dtype give outputs [..., out] of the same one. The input gradient needs
    the weight by columns: it is transposed in each backward pass (one byte a weight read and one written,
    as much traffic as reading it in bf16 once), or with ``weight_transposed`` [in, out] kept beside it,
    which makes the layer as large as one in bf16.

    A new layer is empty: ``weight`` has the dtype that checkpoints are read in, and is exchanged by the
    tensors of ``weight_tensors``. It is a ``torch.nn.Linear``, so that PEFT wraps it like one.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, transposed_copy: bool
    ) -> None:
        # transformers 5.17 casts what it reads to the dtype found here before it is quantised: not to e4m3
        super().__init__(in_features, out_features, bias=bias, device="meta", dtype=dtype)
        self.requires_grad_(False)
        self.compute_dtype = dtype  # PEFT draws adapters in it; else in the weight's e4m3
        self.register_buffer("weight_scale", torch.empty(out_features, 1, device="meta"))
        transposed = torch.empty(in_features, out_features, dtype=E4M3, device="meta")
        self.register_buffer("weight_transposed", transposed if transposed_copy else None)
        self.weight_scale: torch.Tensor
        self.weight_transposed: torch.Tensor | None

    @property
    def W_q(self) -> torch.Tensor:
        """The quantised weight under the name by which PEFT knows that a layer has ``dequantize``.

        ``dequantize_module_weight`` of PEFT 0.21 looks for it; DoRA reads a base's weights through that.
        """
        return self.weight

    def dequantize(self) -> torch.Tensor:
        """The weight [out, in] that the layer multiplies with, exactly, in float32."""
        return self.weight.float() * self.weight_scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # torch's name of it
        """Inputs [..., in] to outputs [..., out]."""
        rows = input.reshape(-1, self.in_features)
        product: Any = _FrozenProduct.apply(rows, self.weight, self.weight_scale, self.weight_transposed)
        result = product.reshape(*input.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias.to(result.dtype)
