"""Which of several processes that share a run this one is, as torchrun and its like say it.

The variables are taken out of the environment: to every library a process is the only one, and what the
processes have in common goes through ``runner.parallel``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runner.core.errors import ConfigError, Issue
from runner.core.process.cuda_devices import cuda_devices, seeing

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
FILE = "RUNNER_RENDEZVOUS"  # the file by which processes of one machine find each other
# How the processes of several machines do; torchrun's.
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """One of ``count`` processes, by its ``number`` among all and its ``local`` number on its machine.

    ``rendezvous`` is the URL at which they meet (torch's ``init_method``).
    """

    number: int = 0
    count: int = 1
    local: int = 0
    rendezvous: str = ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """In this block the environment has the variables again, for what is to find the other processes."""
        os.environ.update({"RANK": str(self.number), "WORLD_SIZE": str(self.count)})
        try:
            yield
        finally:
            for name in ("RANK", "WORLD_SIZE"):
                os.environ.pop(name, None)


class _State:
    claimed = Rank()


_state = _State()


def claim() -> Rank:
    """The rank of this process, from then on that of a process alone for everybody else.

    Of the visible CUDA devices it keeps its own, so that it must come before CUDA is used. Raises
    ``ConfigError`` for variables that make no sense, or where a machine has fewer devices than processes.
    """
    if _state.claimed.count == 1:
        _state.claimed = _read()
    return _state.claimed


def lead(count: int, file: str) -> Rank:
    """The first of ``count`` processes on this machine, which meet at a file; this process."""
    _keep_device(0)
    return Rank(0, count, 0, f"file://{file}")


def variables(number: int, count: int, file: str) -> dict[str, str]:
    """What the environment of another process of this machine says, for ``claim``."""
    numbers = {"RANK": number, "WORLD_SIZE": count, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": count}
    return {**{name: str(value) for name, value in numbers.items()}, FILE: file}


def _read() -> Rank:
    found = {name: os.environ.pop(name, None) for name in _NAMES}
    count, file = _number(found, "WORLD_SIZE", 1), os.environ.pop(FILE, None)
    if count < 2:
        return Rank()
    number, local = _number(found, "RANK", 0), _number(found, "LOCAL_RANK", 0)
    lacking = [name for name in _ADDRESS if not os.environ.get(name)]
    if file is None and lacking:
        message = f"{count} processes share a run, and {' and '.join(lacking)} do not say where they meet"
        raise ConfigError(Issue(f"WORLD_SIZE={count}", message, "torchrun and accelerate launch set them"))
    _keep_device(local)
    return Rank(number, count, local, f"file://{file}" if file else "env://")


def _number(found: dict[str, str | None], name: str, default: int) -> int:
    try:
        return int(found[name] or default)
    except ValueError:
        raise ConfigError(Issue(f"{name}={found[name]}", "is not a number", "torchrun sets it")) from None


def _keep_device(local: int) -> None:
    """Of the visible CUDA devices, keep this process's own; NCCL finds the others all the same."""
    visible = cuda_devices()
    if len(visible) < 2:  # none, or the one that a scheduler has given this process
        return
    if local >= len(visible):
        message = f"this machine has {len(visible)} CUDA devices, and more processes share the run on it"
        raise ConfigError(Issue(f"LOCAL_RANK={local}", message, "a process for each device"))
    os.environ.update(seeing([visible[local]]))
