"""Worker processes that a library forks: they end with this process, and signals end them as they should.

A forked process inherits our signal handlers, which raise an exception where it stands; a pool's worker would
catch that and wait for ever for its next task. A worker would also outlive a process that is killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    pipe: tuple[int, int] | None = None  # reading and writing end, while forks are guarded


_state = _State()


@contextmanager
def guarded_forks() -> Iterator[None]:
    """Processes forked in this block end with it, or with this process, however that ends.

    SIGTERM ends them at once, SIGINT is left to this process.
    """
    before, _state.pipe = _state.pipe, os.pipe()
    try:
        yield
    finally:
        (reading, writing), _state.pipe = _state.pipe, before
        os.close(writing)
        os.close(reading)


def _in_child() -> None:
    if _state.pipe is None:
        return
    (reading, writing), _state.pipe = _state.pipe, None
    os.close(writing)  # the parent has the only one, which the kernel closes with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait, args=(reading,), name="parent", daemon=True).start()


def _wait(reading: int) -> None:
    os.read(reading, 1)  # nothing is ever written: this is the end of the parent
    os._exit(1)


if hasattr(os, "register_at_fork"):  # Windows forks nothing
    os.register_at_fork(after_in_child=_in_child)
