"""Tasks of SLURM as the workers of a sweep: submitted as one array, followed in its queue, found again."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.core import console
from runner.core.errors import ConfigError, ExitCode
from runner.core.process.ended import tail
from runner.core.process.posix import KILL
from runner.sweep.devices import Device
from runner.sweep.jobs import keys_of
from runner.sweep.ledger import has_ended
from runner.sweep.slurm import queue
from runner.sweep.slurm.queue import Entry, Held
from runner.sweep.slurm.submit import submit

_LAG = 20.0  # seconds after which what a task has written is seen through a shared file system
_OFTEN, _SELDOM = 1.0, 60.0  # seconds between two questions to SLURM, which grow with the age of the sweep
# Why a task waits, where that is no news; of other reasons many are mistakes (PartitionTimeLimit).
_USUAL = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Cleaning")
_GONE = Entry("", "not in the queue", "")


class Task:
    """The job of a file as a task of SLURM."""

    def __init__(self, file: Path, device: Device) -> None:
        self.name, self.device, self.began = file.stem, device, time.monotonic()
        self.array, self.index = "", 0
        self.last, self.waiting, self.why = "", True, "None"
        self._file, self._entry, self._left = file, _GONE, 0.0

    def see(self, entry: Entry) -> None:
        """Take over what SLURM says of it."""
        self._left = (self._left or time.monotonic()) if entry.over or entry is _GONE else 0.0
        self._entry = entry if entry is not _GONE else Entry(self._entry.id, entry.state, "")
        self.waiting = not (entry.begun or self._left)
        self.why = entry.reason if self.waiting else "None"
        self.last = f"{self._entry.id} {entry.state}" + (f" ({self.why})" if self.why != "None" else "")

    @property
    def over(self) -> bool:
        """Whether it has ended, and its cells have said how or have had time to."""
        if not self._left:
            return False
        told = all(has_ended(self._file.parents[1] / name) for name in keys_of(self._file))
        return (told and self.code >= 0) or time.monotonic() - self._left > _LAG

    @property
    def code(self) -> int:
        """As far as SLURM's state says: the exit code itself is in no list of it."""
        codes = {"COMPLETED": ExitCode.COMPLETED, "FAILED": ExitCode.FAILED, "CANCELLED": ExitCode.PREEMPTED}
        return codes.get(self._entry.state, -KILL)

    def ended(self) -> str:
        """How it ended, in words."""
        return f"SLURM's task {self._entry.id} has ended as {self._entry.state}"

    def reason(self) -> str:
        """How it ended, with the last lines of the worker's log and of SLURM's."""
        own = self._file.parent / "slurm" / f"{self._entry.id}_0_log.out"
        return "\n".join(
            filter(None, [self.ended(), tail(self._file.with_suffix(".log")), tail(own)])
        ).strip()


def places(count: int) -> list[Device]:
    """As many places in SLURM's queue, which gives each its node."""
    return [Device(f"SLURM {number}", queued=True) for number in range(1, count + 1)]


class Tasks:
    """The tasks of a sweep in ``folder``, with the ``options`` of ``conf/hydra/launcher/slurm.yaml``.

    What is started together is submitted as one array at the next ``wait``; what is ``held``, submitted by an
    earlier process, is followed instead.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], held: Mapping[str, Held]) -> None:
        self.running: list[Task] = []
        self._jobs, self._options = folder.absolute() / "jobs", options
        self._folder = self._jobs / "slurm"
        self._prefix = re.sub(r"[^\w.-]+", "-", folder.name)[:40].strip("-.")
        self._new: list[Task] = []
        self._held = dict(held)
        self._asked = self._since = time.monotonic()
        self._silent, self._said = False, set[str]()

    @property
    def outlive(self) -> str:
        """What to do with the tasks when this process ends."""
        names = ",".join(dict.fromkeys(task.array for task in self.running if task.array))
        return f"SLURM has them: the same command follows them, scancel --name={names} ends them resumably"

    def start(self, file: Path, device: Device, echo: bool, again: bool) -> None:
        """Follow a job that SLURM has, or let it be submitted with those that are started beside it."""
        task = Task(file.absolute(), device)
        self.running.append(task)
        if known := self._held.pop(task.name, None):
            task.array, task.index = known.array, known.index
            task.see(known.entry)
            return
        self._new.append(task)
        if not again:
            file.with_suffix(".log").unlink(missing_ok=True)

    def wait(self, seconds: float) -> Task | None:
        """The next task that ends; None when none does in that time."""
        if self._new:
            self._submit()
        time.sleep(seconds)
        self._look()
        if found := next((task for task in self.running if task.over), None):
            self.running.remove(found)
        return found

    def send(self, number: int) -> None:
        """Nothing: SLURM's signals are its own."""

    def _submit(self) -> None:
        """Submit what was started as one array. Raises ``ConfigError`` where SLURM does not take it."""
        name = f"{self._prefix}-{uuid.uuid4().hex[:8]}"
        new, self._new = self._new, []
        self._folder.mkdir(parents=True, exist_ok=True)
        queue.record(self._folder, name, [task.name for task in new])
        try:
            submit(self._folder, name, [self._jobs / f"{task.name}.json" for task in new], self._options)
        except ConfigError:
            self.running = [task for task in self.running if task not in new]
            (self._folder / f"{name}.json").unlink()
            raise
        for index, task in enumerate(new):
            task.array, task.index = name, index
        self._since = time.monotonic()

    def _look(self) -> None:
        """Ask SLURM for all tasks at once, seldom enough for a sweep of days."""
        now = time.monotonic()
        pause = min(_SELDOM, max(_OFTEN, (now - self._since) / 30))
        if not self.running or now - self._asked < pause:
            return
        self._asked = now
        try:
            entries = queue.ask({task.array for task in self.running})
        except OSError as error:
            if not self._silent:
                console.warn(f"SLURM does not answer, it is asked again: {error}")
            self._silent = True
            return
        self._silent = False
        for task in self.running:
            task.see(entries.get((task.array, task.index), _GONE))
            if task.why not in (*_USUAL, *self._said):
                self._said.add(task.why)
                console.warn(f"{task.name} waits in SLURM's queue: {task.why}")
