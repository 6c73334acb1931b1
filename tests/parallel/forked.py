"""Runs that processes share, quickly: each process is forked from one that has imported the libraries, which
takes as long as the run of a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import starts
from recipes import follow
from runner.__main__ import main
from runner.core.process import orphan
from runner.parallel import launch

FOLLOWER = "follower"  # what the system calls the processes that a forked one has started
# What a test changes in each process of a run, which follows another or does not.
Change = Callable[[bool], None]


class Follower:
    """As the ``subprocess.Popen`` of a follower, for one that is forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or 60)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(FOLLOWER, timeout or 60)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def fork_followers(patch: pytest.MonkeyPatch, change: Change | None = None) -> None:
    """Let a run of this process fork its followers."""

    def child(others: Any, job: Path, number: int, environment: dict[str, str]) -> Follower:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            log = os.open(job.with_name(f"{number}.log"), os.O_WRONLY | os.O_CREAT)
            _follow(job, log, {**environment, orphan.VARIABLE: str(reading)}, reading, change)
        os.close(reading)
        others._pipes.append(writing)
        return Follower(pid)

    patch.setattr(launch._Others, "_child", child)


def _follow(job: Path, log: int, environment: dict[str, str], kept: int, change: Change | None) -> None:
    """Never returns: what is behind it in this process is its parent's."""
    code = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.closerange(3, kept)
        os.closerange(kept + 1, 4096)  # locks and pipes of the parent
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        Path("/proc/self/comm").write_text(FOLLOWER)
        os.environ.clear()
        os.environ.update(environment)
        orphan.die_with_parent()
        if change:
            change(True)
        code = follow.main(job)
    finally:
        os._exit(code)


class Leader:
    """A run of a process of its own, which ``said`` something."""

    def __init__(self, process: Any, log: Path) -> None:
        self.pid, self._process, self._log = process.pid, process, log

    @property
    def code(self) -> int | None:
        """None as long as it runs; negative: the signal that ended it."""
        return self._process.exitcode

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait(self, seconds: float = 300) -> int:
        self._process.join(seconds)
        assert self.code is not None, "it does not end"
        return self.code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def lead(*words: str, folder: Path, change: Change | None = None) -> Leader:
    """Start a run in ``folder``, with a ``change`` of every process."""
    process = starts.start(_lead, folder.parent, [*words, f"output_dir={folder}"], change)
    return Leader(process, folder.parent / "out.log")


def _lead(words: list[str], change: Change | None) -> int:
    with pytest.MonkeyPatch.context() as patch:
        fork_followers(patch, change)
        if change:
            change(False)
        return main(words)
