"""The Triton kernel that unpacks 4-bit weights of bitsandbytes, scales and all."""
# ruff: noqa: ANN001, ANN202  # pointers, whose types Triton takes from the tensors that it is called with

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

NESTED_BLOCK = 256  # scales that share one of their own: the only number that bitsandbytes has
_GROUPS, _WARPS = 32, 4  # scales a program: of 16 to 128 with 4 and 8 warps, nothing was faster (H200)


def dequantize(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    nested_code: torch.Tensor | None,
    nested_absmax: torch.Tensor | None,
    offset: torch.Tensor | None,
    code: torch.Tensor,
    rows: int,
    columns: int,
    block: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A weight [rows, columns] in ``dtype``: ``code[number] * absmax``, the scale of the number's ``block``.

    ``packed`` has two numbers a byte, the first in the upper half, in any storage type; ``code`` [16] is
    float32. ``absmax`` [blocks] is float32, or uint8 for ``nested_code[absmax] * nested_absmax + offset``.
    """
    out = torch.empty(rows, columns, dtype=dtype, device=packed.device)
    count = rows * columns // block
    nested = (absmax, absmax, absmax) if nested_code is None else (nested_code, nested_absmax, offset)
    kernel: Any = _kernel
    kernel[(triton.cdiv(count, _GROUPS),)](
        packed.view(-1).view(torch.uint8),
        absmax,
        *nested,
        code,
        out,
        count,
        BYTES=block // 2,
        GROUPS=_GROUPS,
        NESTED=0 if nested_code is None else NESTED_BLOCK,
        num_warps=_WARPS,
        enable_fp_fusion=False,  # bitsandbytes rounds between the product and the sum
    )
    return out


@triton.jit
def _kernel(
    packed,
    absmax,
    nested_code,
    nested_absmax,
    offset,
    code,
    out,
    count,
    BYTES: tl.constexpr,
    GROUPS: tl.constexpr,
    NESTED: tl.constexpr,
):
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    inside = group < count
    scale = tl.load(absmax + group, mask=inside, other=0)
    if NESTED:
        wide = tl.load(nested_code + scale.to(tl.int32))
        scale = wide * tl.load(nested_absmax + group // NESTED, mask=inside, other=0) + tl.load(offset)
    place = group[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    byte = tl.load(packed + place, mask=inside[:, None], other=0).to(tl.int32)
    upper = tl.load(code + (byte >> 4)) * scale[:, None]
    lower = tl.load(code + (byte & 15)) * scale[:, None]
    both = tl.join(upper, lower).reshape(GROUPS, 2 * BYTES)
    place = group[:, None] * (2 * BYTES) + tl.arange(0, 2 * BYTES)[None, :]
    tl.store(out + place, both.to(out.dtype.element_ty), mask=inside[:, None])
