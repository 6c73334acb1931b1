"""What the jobs of a sweep are leased to: CUDA devices or, where there is none, shares of the CPU's cores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from runner.core.environment import WORKERS, available_cores
from runner.core.errors import ConfigError, Issue
from runner.core.process.cuda_devices import cuda_devices, seeing

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

Chosen = str | int | list[int] | None


@dataclass(frozen=True)
class Device:
    """What one worker process computes on.

    ``name`` is what people read: ``GPU 1``, ``cores 0-3``, or ``host`` for all that there is without CUDA.
    ``variables`` are added to the environment of the process, which is bound to ``cores`` (none: to what its
    parent is bound to). ``gpus`` counts CUDA devices. One that is ``queued`` is a place in the queue of a
    scheduler, which chooses the machine.
    """

    name: str
    variables: dict[str, str] = field(default_factory=dict, hash=False)
    cores: tuple[int, ...] = ()
    gpus: int = 0
    queued: bool = False


def choose(chosen: Chosen, together: bool = False) -> list[Device]:
    """The devices that ``sweep.devices`` means on this machine, at least one.

    ``auto`` and null are all visible CUDA devices, a number the first so many, a list those with these
    numbers among the visible ones, as torch counts them. ``together`` makes one of them, for a model that is
    spread over several (``model.device_map``). Without CUDA a number is how many workers share the cores.
    Raises ``ConfigError`` for what is not there.
    """
    visible = cuda_devices()
    if not visible:
        return _shares(chosen)
    if isinstance(chosen, int) and chosen > len(visible):
        message = f"this machine has {_counted(visible)}"
        raise ConfigError(Issue(f"sweep.devices={chosen}", message, f"allowed: auto, or 1 to {len(visible)}"))
    if isinstance(chosen, list) and (missing := [str(number) for number in chosen if number >= len(visible)]):
        shown = ",".join(map(str, chosen))
        message = (
            f"no CUDA device has the number {' or '.join(missing)}, this machine has {_counted(visible)}"
        )
        allowed = f"numbers from 0 to {len(visible) - 1}" if len(visible) > 1 else "[0]"
        raise ConfigError(Issue(f"sweep.devices=[{shown}]", message, f"allowed: auto, or {allowed}"))
    if isinstance(chosen, int):
        visible = visible[:chosen]
    elif isinstance(chosen, list):
        visible = [visible[number] for number in chosen]
    return [_gpu(visible)] if together else [_gpu([name]) for name in visible]


def _gpu(names: Sequence[str]) -> Device:
    """One or several CUDA devices for one process."""
    shown = ",".join(names)
    return Device(f"GPU {shown}" if names[0].isdigit() else shown, seeing(names), gpus=len(names))


def _shares(chosen: Chosen) -> list[Device]:
    """The cores of this process, divided among so many workers."""
    cores = available_cores()
    workers = chosen if isinstance(chosen, int) else 1
    allowed = f"allowed: auto, or 1 to {len(cores)} workers that share the cores"
    if isinstance(chosen, list):
        shown = ",".join(map(str, chosen))
        raise ConfigError(Issue(f"sweep.devices=[{shown}]", "there is no CUDA device here", allowed))
    if workers > len(cores):
        message = f"there is no CUDA device here, and {len(cores)} core{'s' * (len(cores) > 1)}"
        raise ConfigError(Issue(f"sweep.devices={workers}", message, allowed))
    if workers == 1:
        return [Device("host")]
    bounds = [len(cores) * number // workers for number in range(workers + 1)]
    return [_share(cores[low:high], workers) for low, high in itertools.pairwise(bounds)]


def _share(cores: Sequence[int], workers: int) -> Device:
    """A worker's cores, with no more threads than they are."""
    given = {name: os.environ.get(name, "") for name in _THREADS}
    threads = {
        name: str(min(int(text), len(cores)) if text.isdigit() and int(text) else len(cores))
        for name, text in given.items()
    }
    runs = len(cores) > 1 and cores[-1] - cores[0] == len(cores) - 1
    shown = f"{cores[0]}-{cores[-1]}" if runs else ",".join(map(str, cores))
    name = f"core{'s' * (len(cores) > 1)} {shown}"
    return Device(name, {**threads, WORKERS: str(workers)}, tuple(cores))


def _counted(visible: Sequence[str]) -> str:
    return f"{len(visible)} CUDA device{'s' * (len(visible) > 1)} ({', '.join(visible)})"
