"""Processes of their own: starts of the runner that can be killed, quickly (the imports are done once), and a
process that holds a folder."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["faults.preloaded"])


def start(target: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """Call ``target(*arguments)`` in ``folder`` in a new process; its result, a number, is the exit code."""
    process = _server.Process(target=_call, args=(target, str(folder), arguments))
    with pytest.MonkeyPatch.context() as patch:  # the first process starts the server, which imports by it
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
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


_HOLDER = """
import sys, time
from pathlib import Path
from runner.core.process.folder_lock import hold
hold(Path(sys.argv[1]), "runs here")
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holding(folder: Path) -> Iterator[int]:
    """In this block another process, whose number is given, holds ``folder``; at its end it is killed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()
