"""SIGTERM, SIGINT and SIGUSR1 end a run after its step, with a checkpoint; outside of training at once.

SIGUSR1 is for schedulers: torchrun passes SIGTERM on and kills its workers 30 s later, but not SIGUSR1.
In the process of a sweep, which trains nothing itself, the first two are a ``KeyboardInterrupt``.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from runner.core.errors import ExitCode, RunnerError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *filter(None, [getattr(signal, "SIGUSR1", None)]))


class Preempted(RunnerError):
    """A signal ended the run before it was complete; ``resume=auto`` resumes it."""

    code = ExitCode.PREEMPTED


_SAME = (
    5.0  # seconds in which a launcher and its scheduler each send what is one signal to a process of several
)


class _State:
    deferred = False  # whether ``pending_signal`` is polled between two steps
    agrees = False  # whether the processes of a run agree on the step that a signal ends
    received: str | None = None  # name of the signal that was received
    at = 0.0  # when (``time.monotonic``)
    pending: str | None = None  # name of the one that is to be answered


_state = _State()


@contextmanager
def signal_handlers() -> Iterator[None]:
    """Raise ``Preempted`` in this block when one of the signals is received. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        _state.received = _state.pending = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def end_with_reader(to_the_end: bool) -> Iterator[None]:
    """End the process quietly when nobody reads its stdout any more (``| head``), as Unix tools end.

    For commands that do nothing but print: Python's own way is a traceback, of ``--info`` one a line, and
    another message where it flushes what is left at its end: ``to_the_end`` has this block reach there.
    """
    if not hasattr(signal, "SIGPIPE") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        if not to_the_end:
            signal.signal(signal.SIGPIPE, before)


@contextmanager
def defer_signals(agreed: bool = False) -> Iterator[None]:
    """Defer the first signal in this block to ``pending_signal``; a second one raises ``Preempted``.

    ``agreed`` has it pending only once it was accepted, with those that other processes ``received``.
    """
    _state.deferred, _state.agrees = True, agreed
    try:
        yield
    finally:
        _state.deferred = False


def pending_signal() -> str | None:
    """The name of a deferred signal; None if there is none."""
    return _state.pending


def received() -> str | None:
    """The name of the signal that this process has received; None if there is none."""
    return _state.received


def accept(name: str) -> None:
    """Have a signal pending that this process, or another one of the run, has received."""
    _state.pending = name


def _on_signal(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    if _state.deferred and _state.received is None:
        _state.received, _state.at = name, time.monotonic()
        if not _state.agrees:
            _state.pending = name
        return
    if _state.deferred and _state.agrees and time.monotonic() - _state.at < _SAME:
        return
    raise Preempted(f"ended by {name}")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it."""


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise ``Terminated`` in this block on SIGTERM. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
