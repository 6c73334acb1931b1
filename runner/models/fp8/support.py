"""Whether this machine multiplies in e4m3 with row-wise scales."""

from __future__ import annotations

import torch

from runner.models.fp8.linear import MULTIPLE, quantize_rows, scaled_product

_LEAST = (8, 9)  # Ada; older tensor cores have no 8-bit floating point


def unsupported() -> str | None:
    """Why the products of ``Fp8Linear`` cannot be computed here, None where they can.

    The compute capability is asked first, then torch itself with a product of 16 numbers a side, as which
    devices it has row-wise kernels for is a matter of its release and how it was built: 2.11 has them for
    Ada (8.9), Hopper (9.0) and Blackwell (10.x to 12.x) on Linux, and none on Windows.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return "AMD's GPUs of this kind use another e4m3 (fnuz), which is not supported"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability < _LEAST:
        has, needs = (".".join(map(str, each)) for each in (capability, _LEAST))
        return f"{name} has compute capability {has}, and e4m3 needs {needs} (Ada, Hopper and newer)"
    rows, scales = quantize_rows(torch.ones(MULTIPLE, MULTIPLE, device="cuda"))
    try:
        scaled_product(rows, scales, rows.t(), scales.t())
    except RuntimeError as error:
        return f"torch {torch.__version__} cannot do it on {name}: {str(error).splitlines()[0]}"
    return None
