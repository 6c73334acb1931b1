"""Run a function in a forked process, which can be ended whatever it does, and ends with this process."""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from runner.core.errors import RunnerError
from runner.core.process.forks import guarded_forks
from runner.core.process.limits import HARD_SECONDS, TooMuch

Result = TypeVar("Result")


class Died(RunnerError):
    """The process was ended by a signal from outside, or by a crash."""


class _State:
    inside = False  # whether this is such a process


_state = _State()


def in_child(function: Callable[[], Result], seconds: float | None = None) -> Result:
    """What a function returns or raises, from a forked process; what it changes in memory stays there.

    Python handles no signal within one long call into C, such as the comparison of two nested lists; a
    process of its own can be ended in it, while this one waits and can be interrupted. Raises ``TooMuch`` if
    the hard limit of ``limited`` ended it or it took more ``seconds``, and ``Died`` if something else did.
    Where there is no fork, in another thread and inside of such a process the function runs here.
    """
    main = threading.current_thread() is threading.main_thread()
    if not hasattr(os, "fork") or not main or _state.inside:
        return function()
    with guarded_forks():
        answer, status = _forked(function, seconds)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == getattr(signal, "SIGPROF", None):
            raise TooMuch(f"it takes more than {HARD_SECONDS:g} seconds in one step")
        raise Died(f"a process that renders the chat template was ended by {signal.Signals(number).name}")
    worked, value = pickle.loads(answer)
    if not worked:
        raise value
    return value


def _forked(function: Callable[[], Any], seconds: float | None) -> tuple[bytes, int]:
    """What the process writes, and how it ended. It is killed when this one is interrupted."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run(function, writing)
    os.close(writing)
    ended = False
    try:
        with open(reading, "rb") as stream:
            if not select.select([stream], [], [], seconds)[0]:
                raise TooMuch(f"it takes more than {seconds:g} seconds")
            answer = stream.read()
        status, ended = os.waitpid(pid, 0)[1], True
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return answer, status


def _run(function: Callable[[], Any], writing: int) -> None:
    """The life of the forked process: it never returns."""
    _state.inside = True
    try:
        try:
            answer = pickle.dumps((True, function()))
        except BaseException as error:
            answer = _pickled(error)
        with open(writing, "wb") as stream:
            stream.write(answer)
    finally:
        os._exit(0)


def _pickled(error: BaseException) -> bytes:
    """An error with the place where it was raised."""
    if not isinstance(error, RunnerError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
    except Exception:
        return pickle.dumps((False, RuntimeError("".join(traceback.format_exception(error)))))
    return answer
