"""The processes of a sweep's jobs: how one is started, listened to and ended."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from runner.core import console
from runner.core.paths import PACKAGE
from runner.core.process import orphan
from runner.core.process.ended import how_it_ended, tail
from runner.core.process.folder_lock import FolderLock
from runner.sweep.devices import Device

WORKER = ["-m", "runner.sweep.worker"]

Ended = Callable[["Child"], None]


@dataclass(frozen=True)
class _Process:
    """A worker that imports its libraries and waits for the name of its job; by the end of the pipe
    ``writing`` it notices that this process is gone."""

    popen: subprocess.Popen[bytes]
    writing: int

    def give(self, job: Path) -> None:
        """Let it run a job."""
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError), self.popen.stdin as stream:  # else it has ended, which shows later
            stream.write(json.dumps(str(job)).encode() + b"\n")  # ASCII, whatever the path has

    def kill(self) -> None:
        """End it, which has no job."""
        self.popen.kill()
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()
        os.close(self.writing)


def _start(device: Device, lock: FolderLock | None) -> _Process:
    """Start a worker on a device. It holds the ``lock`` of the sweep as long as it lives, which may be longer
    than its parent, and is in a process group of its own, so that Ctrl-C reaches it once, from here."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *WORKER, "-", device.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(device), orphan.VARIABLE: str(reading)},
        pass_fds=[reading, *([lock.descriptor] if lock else [])],
        start_new_session=True,
    )
    os.close(reading)
    if device.cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # it has ended already
            os.sched_setaffinity(process.pid, device.cores)
    return _Process(process, writing)


class Child:
    """A worker that runs the job of a ``file`` on a ``device``.

    Everything that it prints goes to the log beside the file, ``again`` behind what an earlier process has
    printed there, and with ``echo`` to the terminal too; ``last`` is the last line.
    """

    waiting = False

    def __init__(
        self, process: _Process, file: Path, device: Device, echo: bool, ended: Ended, again: bool
    ) -> None:
        self.name, self.device, self.log = file.stem, device, file.with_suffix(".log")
        self.last, self.began = "", time.monotonic()
        self._process, self._writing = process.popen, process.writing
        arguments = (echo, ended, "ab" if again else "wb")
        self._listener = threading.Thread(target=self._listen, args=arguments, daemon=True)
        self._listener.start()
        process.give(file)

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    @property
    def code(self) -> int:
        """The exit code of a child that has ended; negative: the signal that ended it."""
        return self._process.wait()

    def ended(self) -> str:
        """How it ended, in words."""
        return how_it_ended(self.code)

    def reason(self) -> str:
        """How it ended, with the last lines of its log."""
        return f"{self.ended()}\n{tail(self.log)}".strip()

    def _listen(self, echo: bool, ended: Ended, mode: str) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stream = self._process.stdout
        assert stream is not None
        try:
            with self.log.open(mode) as log:
                while chunk := os.read(stream.fileno(), 65536):
                    text = decoder.decode(chunk)
                    self.last = next(
                        (line for line in reversed(text.splitlines()) if line.strip()), self.last
                    )
                    echo = echo and _say(text)
                    log.write(chunk)
                    log.flush()
        finally:
            self._process.wait()
            stream.close()
            os.close(self._writing)
            ended(self)


class Children:
    """The children that run, and a queue of those that have ended; they hold the ``lock`` of the sweep."""

    outlive = ""

    def __init__(self, lock: FolderLock | None) -> None:
        self.running: list[Child] = []
        self._lock = lock
        self._ready: dict[str, _Process] = {}
        self._ended: queue.Queue[Child] = queue.Queue()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        """End those that wait for a job."""
        self.keep([])

    def await_jobs(self, devices: Iterable[Device]) -> None:
        """Let the next worker of these devices import the libraries of training now, 5 to 19 s by machine."""
        self._ready = {device.name: _start(device, self._lock) for device in devices}

    def keep(self, devices: Iterable[Device]) -> None:
        """End those that wait for a job on other devices than these."""
        for name in self._ready.keys() - {device.name for device in devices}:
            self._ready.pop(name).kill()

    def start(self, file: Path, device: Device, echo: bool, again: bool) -> None:
        """Start a job."""
        process = self._ready.pop(device.name, None) or _start(device, self._lock)
        self.running.append(Child(process, file, device, echo, self._ended.put, again))

    def wait(self, seconds: float) -> Child | None:
        """The next child that ends; None when none does in that time."""
        try:
            child = self._ended.get(timeout=seconds)
        except queue.Empty:
            return None
        self.running.remove(child)
        return child

    def send(self, number: int) -> None:
        """Send a signal to all."""
        for child in self.running:
            child.send(number)


def _say(text: str) -> bool:
    """Write to the terminal; False when nobody reads there any more (``| head``)."""
    try:
        console.out.file.write(text)
        console.out.file.flush()
    except (OSError, ValueError):
        return False
    return True


def environment(device: Device) -> dict[str, str]:
    """What a worker finds: this project, wherever it was started from, and its device."""
    path = [os.environ.get("PYTHONPATH", ""), str(PACKAGE.parent)]
    own = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    return {**os.environ, **own, **device.variables}
