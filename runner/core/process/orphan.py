"""A child process ends when the process that started it is gone, however that one ended.

The child holds the reading end of a pipe whose only writing end is the parent's: when the parent is killed
the kernel closes it, and the child reads the end of the file. Linux' ``PR_SET_PDEATHSIG`` would do so too,
but it follows the *thread* that started the child, misses a parent that dies before the call, and is not
found elsewhere.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from runner.core.process.posix import KILL

VARIABLE = "RUNNER_PARENT_PIPE"
GRACE = 20.0  # seconds between SIGTERM and SIGKILL


def die_with_parent(grace: float = GRACE) -> None:
    """End this process when its parent is gone: SIGTERM first, SIGKILL ``grace`` seconds later.

    To be called by the child as early as possible. Does nothing in a process that was started by hand.
    """
    number = os.environ.pop(VARIABLE, None)  # not for its own children, which do not have the pipe
    if number is None:
        return
    threading.Thread(target=_wait, args=(int(number), grace), name="parent", daemon=True).start()


def _wait(descriptor: int, grace: float) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os.kill(os.getpid(), KILL)
