"""The device, and what of it the libraries can use: precision, speed, 4 and 8 bits, attention, a compiler."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from runner.benchmark.flops import matmul_rate
from runner.core import environment
from runner.doctor.finding import Finding
from runner.models.fp8 import support
from runner.models.model import device

GIB = 2**30
_NVIDIA = Path("/proc/driver/nvidia/version")
_SECONDS = 0.3  # of each product that is measured


def devices() -> Iterator[Finding]:
    """Each device that a run can compute on, its free memory, and the driver."""
    if not torch.cuda.is_available():
        found = environment.device()
        threads = f", {found['count']} thread{'s' * (found['count'] != 1)}" if found["kind"] == "cpu" else ""
        yield Finding("device", f"{found['name']}, {found['kind']}{threads}")
        yield from _unused_gpu()
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        name = f"{torch.cuda.get_device_name(number)}, compute capability {major}.{minor}"
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        busy = free < 0.9 * total
        advice = "another process holds the rest: `nvidia-smi` shows which" if busy else ""
        yield Finding(f"GPU {number}", f"{name}, {memory}", advice=advice)
    driver = _driver()
    yield Finding("CUDA", f"{torch.version.cuda} in torch" + (f", driver {driver}" if driver else ""))


def _unused_gpu() -> Iterator[Finding]:
    driver = _driver()
    if not driver and not shutil.which("nvidia-smi"):
        return
    reason, advice = "is built without CUDA", "install torch for CUDA"
    if torch.version.cuda:
        reason, advice = "sees no device", "look at CUDA_VISIBLE_DEVICES, and at the driver's version"
    found = f"driver {driver or 'installed'}, torch {torch.__version__} {reason}"
    yield Finding("GPU", found, ok=False, advice=advice)


def _driver() -> str | None:
    """The version of NVIDIA's kernel module on Linux."""
    if not _NVIDIA.is_file():
        return None
    words = _NVIDIA.read_text(encoding="utf-8", errors="replace").split()
    return next((word for word in words if word.replace(".", "").isdigit() and "." in word), None)


def speed() -> Iterator[Finding]:
    """What ``trainer.precision=auto`` means here, and the measured rate of products in it and in float32."""
    native = environment.native_precision()
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    names = dict.fromkeys((native, "fp32"))
    rates = {name: matmul_rate(dtypes[name], device(), seconds=_SECONDS)[0] for name in names}
    unit, size = ("TFLOP/s", 1e12) if torch.cuda.is_available() else ("GFLOP/s", 1e9)
    shown = ", ".join(f"{name} {rate / size:,.0f} {unit}" for name, rate in rates.items())
    slow = rates[native] < rates["fp32"]
    advice = f"trainer.precision=fp32 is faster here than {native}" if slow else ""
    yield Finding("precision", f"auto is {native}")
    yield Finding("matrix product", shown, ok=not slow, advice=advice)


def quantization() -> Iterator[Finding]:
    """Whether bitsandbytes computes here, and fp8."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(64, 64, device=device(), dtype=torch.float32)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    back = dequantize_4bit(packed, state)
    error = float((back - weight).norm() / weight.norm())
    well = error < 0.2  # 0.1 for normal numbers in NF4
    yield Finding(
        "bitsandbytes",
        f"{version('bitsandbytes')}, nf4 within {error:.0%}",
        ok=well,
        advice="" if well else "quantization=nf4 would be wrong: another bitsandbytes for this device",
    )
    reason = support.unsupported()
    yield Finding("fp8", f"not here: {reason}" if reason else "e4m3 with row-wise scales")


def attention() -> Iterator[Finding]:
    """The kernels of attention that ``model.attn_implementation`` can name."""
    found = ["eager", "sdpa"]
    if torch.cuda.is_available():
        kinds = {
            "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        }
        found[1] = f"sdpa ({', '.join(name for name, on in kinds.items() if on)})"
        found.append("flex_attention")
    if importlib.util.find_spec("flash_attn"):
        found.append("flash_attention_2")
    yield Finding("attention", ", ".join(found))


def compiler() -> Iterator[Finding]:
    """What ``speed.compile`` needs on CUDA: Triton, and a C compiler for its launchers."""
    found = shutil.which("gcc") or shutil.which("cc")
    triton = importlib.util.find_spec("triton") is not None
    words = f"{Path(found).name if found else 'no C compiler'}, {'Triton' if triton else 'no Triton'}"
    if not torch.cuda.is_available():
        yield Finding("compiler", f"{words}; a CPU needs none")
        return
    missing = [] if found else ["gcc"]
    missing += [] if triton else ["triton"]
    advice = f"install {' and '.join(missing)}: layers are not compiled without" if missing else ""
    yield Finding("compiler", words, ok=not missing, advice=advice)
