"""Processes of their own: starts of the runner that can be killed, quickly (the imports are done once), and a
process that holds a folder."""

from __future__ import annotations

import json
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

from helpers.command import Run
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


def slow_start(folder: Path) -> None:
    """Let the start that was interrupted have taken 1,000 seconds, of which 900 were training."""
    record = json.loads((folder / "run.json").read_text())
    record |= {"seconds": 1000.0, "times": record["times"] | {"train": 900.0}}
    (folder / "run.json").write_text(json.dumps(record))


def assert_adds_up(run: Run) -> None:
    """The seconds of a resumed run are those of all its starts, its speed that of the last one."""
    record = run.record
    own = record["times"]["train"] - record["earlier_starts"]["times"]["train"]
    assert record["earlier_starts"]["seconds"] == 1000
    assert record["seconds"] > 1000
    assert 0 < own < 60
    assert record["metrics"]["tokens_per_second"] > record["metrics"]["tokens"] / 900
