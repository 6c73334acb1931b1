"""A bound on time and memory for code of others that we evaluate: a chat template may loop forever."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.core.process.posix import resource

SECONDS = 5.0
HARD_SECONDS = SECONDS + 2  # of the processor's time, after which SIGPROF ends the process
MEMORY = 2**30


class TooMuch(Exception):
    """The time or memory limit was exceeded."""


class _State:
    armed = False  # whether the timer runs and the memory of the process is bounded
    began: float | None = None  # when the ``limited`` block in progress began (``time.monotonic``)


_state = _State()


@contextmanager
def limited(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Raise ``TooMuch`` when the block takes more seconds, or more bytes on top of what the process has.

    Time is bounded in the main thread, memory on Linux; elsewhere what follows runs as it is. A single call
    into C cannot be interrupted: after ``HARD_SECONDS`` in it the process ends, so hostile code runs first in
    a process of its own (``in_child``). Inside
    ``armed`` the bounds are those of the outer block, and the seconds begin anew with each ``limited`` block.
    """
    if not _state.armed:
        with armed(seconds, memory), limited(seconds, memory):
            yield
        return
    timed = threading.current_thread() is threading.main_thread()
    if timed:
        _state.began = time.monotonic()
    try:
        yield
    except MemoryError:
        raise TooMuch(f"it takes more than {memory / 2**30:g} GiB of memory") from None
    finally:
        if timed:
            _state.began = None


@contextmanager
def armed(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Set the timer and the memory limit once for many ``limited`` blocks.

    Setting them around each rendering of a template took as long as the rendering itself: 23 microseconds.
    The code between the ``limited`` blocks may take any time, but its memory is bounded too.
    """
    with _timed(seconds), _sized(memory):
        _state.armed = True
        try:
            yield
        finally:
            _state.armed = False


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        left = seconds if _state.began is None else _state.began + seconds - time.monotonic()
        if left <= 0:
            raise TooMuch(f"it takes more than {seconds:g} seconds")
        signal.setitimer(signal.ITIMER_REAL, left)  # an earlier block had begun the time that is over
        signal.setitimer(signal.ITIMER_PROF, HARD_SECONDS)

    before = signal.signal(signal.SIGALRM, stop)
    # Python calls no handler within a call into C, however long: then the kernel ends the process
    ends = signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, HARD_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGPROF, ends)


@contextmanager
def _sized(memory: int) -> Iterator[None]:
    if sys.platform != "linux" or resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    most = pages * resource.getpagesize() + memory
    bounds = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
