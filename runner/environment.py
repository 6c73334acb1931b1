"""What a run ran on: git state, package versions, device and peak memory."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runner.paths import CONFIG_DIR

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
)


def git_state() -> dict[str, Any] | None:
    """Commit of the project's checkout and whether it has uncommitted changes; None outside a checkout."""
    root = CONFIG_DIR.parent
    commit = _git(["rev-parse", "HEAD"], root)
    return {"commit": commit, "dirty": bool(_git(["status", "--porcelain"], root))} if commit else None


def _git(arguments: list[str], folder: Any) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide a result."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def python_version() -> str:
    """Python and the operating system, in one line."""
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def device() -> dict[str, Any]:
    """Kind, name, count and memory (bytes) of what the run computes on."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        world = int(os.environ.get("WORLD_SIZE", "1"))
        return {
            "kind": "cuda",
            "name": properties.name,
            "count": world,
            "memory_bytes": properties.total_memory,
        }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.backends.mps.is_available():
        return {"kind": "mps", "name": platform.processor() or "Apple", "count": 1, "memory_bytes": memory}
    return {"kind": "cpu", "name": _cpu_name(), "count": torch.get_num_threads(), "memory_bytes": memory}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            line = next((line for line in stream if line.startswith("model name")), "")
    except OSError:
        line = ""
    return line.partition(":")[2].strip() or platform.processor() or "CPU"


def peak_memory() -> int:
    """Bytes: the most that CUDA tensors took at once, or without CUDA the largest size of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    except (OSError, AttributeError):
        return
    mallopt(mmap_threshold, most)
    mallopt(trim_threshold, most)
