"""The CUDA devices of this machine, by name, before any library is imported."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence

_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def cuda_devices() -> list[str]:
    """The CUDA devices that may be used, by the names that CUDA_VISIBLE_DEVICES takes; asks no library."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",") if name.strip()]
        seen = itertools.takewhile(lambda name: not name.startswith("-"), names)  # as CUDA reads -1
        return list(dict.fromkeys(seen))
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    listed = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(listed))]


def seeing(names: Sequence[str]) -> dict[str, str]:
    """The variables of a process that shall see no other CUDA devices than these."""
    variables = {_VISIBLE: ",".join(names)}
    if _VISIBLE not in os.environ:
        # numbered by nvidia-smi, which does not count the fastest first as CUDA does
        variables[_ORDER] = os.environ.get(_ORDER, "PCI_BUS_ID")
    return variables
