"""Starts of the runner as processes of their own that can be killed, quickly: the imports are done once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["recipes.train", "runner.packed.train_pack", "runner.packed.trainer"])


def start(target: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """Call ``target(*arguments)`` in ``folder`` in a new process; its result, a number, is the exit code."""
    process = _server.Process(target=_call, args=(target, str(folder), arguments))
    process.start()
    return process


def _call(target: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    sys.stdout = sys.stderr = Path("out.log").open("a", buffering=1)  # noqa: SIM115
    sys.exit(int(target(*arguments) or 0))


def kill_while_saving(process: Any, aside: Path, seconds: float) -> bool:
    """Kill the process with SIGKILL within ``seconds`` of the next save's begin; False: it ended before."""
    while process.is_alive():
        if aside.exists():
            time.sleep(random.uniform(0, seconds))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.0002)
    process.join()
    return False
