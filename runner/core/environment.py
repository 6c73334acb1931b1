"""What a run ran on: package versions, variables that change numbers, device and peak memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runner.core.process.posix import resource

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pyarrow",
    "jinja2",
    "huggingface_hub",
    "sentencepiece",
    "gguf",
    "scipy",
    "sacrebleu",
    "triton",
    "liger-kernel",
    "unsloth",
    "lm-eval",
    "recipe-runner",
)
# Variables that change numbers or which device is used; others are nobody's business.
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHDYNAMO_DISABLE",
)
WORKERS = "RUNNER_WORKERS"  # how many workers of a sweep share the memory of this machine with this process


def package_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide a result."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def variables() -> dict[str, str]:
    """The set ones of the environment's variables that change numbers."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def python_version() -> str:
    """Python and the operating system, in one line."""
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def device() -> dict[str, Any]:
    """Kind, name, count and memory (bytes) of what the run computes on, and how it computes there.

    ``auto_precision`` is what ``trainer.precision=auto`` means on it.
    """
    import psutil
    import torch

    numbers = {"auto_precision": native_precision(), "float32_matmul": torch.get_float32_matmul_precision()}

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "kind": "cuda",
            "name": properties.name,
            "count": 1,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **numbers,
        }
    memory = psutil.virtual_memory().total
    if torch.backends.mps.is_available():
        name = platform.processor() or "Apple"
        return {"kind": "mps", "name": name, "count": 1, "memory_bytes": memory, **numbers}
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    cpu = {"kind": "cpu", "name": _cpu_name(), "count": threads, "memory_bytes": memory}
    return {**cpu, "instructions": instructions, **numbers}


def machine() -> dict[str, Any]:
    """The processor and the memory (bytes), for a run that computes nothing: torch is not imported."""
    import psutil

    memory = psutil.virtual_memory().total
    return {"kind": "cpu", "name": _cpu_name(), "count": os.cpu_count(), "memory_bytes": memory}


def native_precision() -> str:
    """The number format that ``auto`` stands for: bf16 where the hardware computes in it."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if capable and not torch.backends.mps.is_available() else "fp32"


def cpu_precision() -> str:
    """What ``auto`` stands for on this processor, as ``native_precision`` finds, without torch."""
    flags = _cpu_fact("flags").split()
    return "bf16" if {"avx512_bf16", "amx_tile"} & set(flags) else "fp32"


def _cpu_name() -> str:
    return _cpu_fact("model name") or platform.processor() or "CPU"


def _cpu_fact(name: str) -> str:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            line = next((line for line in stream if line.startswith(name)), "")
    except OSError:
        line = ""
    return line.partition(":")[2].strip()


def available_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_memory() -> int:
    """Bytes of the machine's memory that this process may take: what is free, divided among the workers of a
    sweep that train on the CPU beside each other."""
    import psutil

    return psutil.virtual_memory().available // int(os.environ.get(WORKERS, "1"))


def peak_memory() -> int:
    """Bytes: the most that torch held of the CUDA device at once, or without CUDA the largest size of this
    process. What CUDA graphs work in counts, which is no tensor's while they are replayed."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    if resource is None:
        return psutil.Process().memory_info().peak_wset  # type: ignore[attr-defined]  # Windows has this one
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_allocated() -> int | None:
    """Bytes: the most that tensors took of the CUDA device at once; None without CUDA."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step, instead of giving each back to the kernel.

    By default every large tensor is mapped and unmapped anew, its pages zeroed again; on a CPU that took a
    fifth of a training step (SmolLM2-135M, batch 2: 249 to 312 tokens/s on two cores). Elsewhere: nothing.
    """
    mmap_threshold, trim_threshold, most = (
        -3,
        -1,
        2**31 - 1,
    )  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library of the process itself
        return
    mallopt(mmap_threshold, most)
    mallopt(trim_threshold, most)


class _Heap(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h."""

    _names_ = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names_.split())


def used_memory() -> int:
    """Bytes of memory that this process has, without freed blocks that glibc keeps for the next ones."""
    import psutil

    resident = psutil.Process().memory_info().rss
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2  # since glibc 2.33
    except (OSError, AttributeError, TypeError):
        return resident
    mallinfo.restype = _Heap
    return max(0, resident - mallinfo().fordblks)
