"""SIGTERM and SIGINT: a run ends at the next step with a checkpoint, or at once where there is no step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from runner.core.errors import ExitCode, RunnerError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(RunnerError):
    """The run was asked to end before it was complete; ``resume=auto`` goes on."""

    code = ExitCode.PREEMPTED


class _State:
    deferred = False  # whether somebody looks at ``pending_signal`` between two steps
    asked: str | None = None  # name of the signal that came


_state = _State()


@contextmanager
def signal_handlers() -> Iterator[None]:
    """Turn the signals into ``Preempted`` in this block, raised where the program stands."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        _state.asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """In this block a signal only sets what ``pending_signal`` returns; a second one raises
    ``Preempted`` at once."""
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False


def pending_signal() -> str | None:
    """The signal by which the run was asked to end, by name."""
    return _state.asked


def _on_signal(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if _state.deferred and _state.asked is None:
        _state.asked = name
        return
    raise Preempted(f"ended by {name}")
