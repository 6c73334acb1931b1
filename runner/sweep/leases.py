"""Jobs of a sweep leased from one queue to its devices, one worker each, until none is left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

from runner.core import console
from runner.core.errors import ExitCode
from runner.core.process.posix import KILL
from runner.core.signals import Terminated
from runner.sweep.devices import Device
from runner.sweep.jobs import Job
from runner.sweep.ledger import DONE, INTERRUPTED, Ledger
from runner.sweep.opening import count
from runner.sweep.screen import live, showing
from runner.sweep.workers import Worker, Workers


@dataclass(frozen=True)
class _Lease:
    """A job in its file, before and while it has a device; ``again`` after a device that it ``avoids``."""

    job: Job
    file: Path
    again: bool = False
    avoids: Device | None = None


class Leases:
    """The queue of a sweep's jobs, its devices, and the workers on them.

    A job whose process dies is started once more, on another device where there is one, with the cells that
    have not ended. ``write`` writes the file of a job. The output of a process is that of the sweep where no
    other runs beside it, else it is in its log.
    """

    def __init__(
        self, devices: Sequence[Device], ledger: Ledger, workers: Workers, write: Callable[[Job], Path]
    ) -> None:
        self._ledger, self._workers, self._write = ledger, workers, write
        self._devices, self._free = devices, list(devices)
        self._several = False  # whether jobs run beside each other
        self._waiting: list[_Lease] = []
        self._running: dict[str, _Lease] = {}
        self._stopped = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs. An interrupt ends them, with their checkpoints, and is raised again.

        Raises ``ConfigError`` where workers cannot be started as they were asked for.
        """
        self._waiting = [_Lease(job, self._write(job)) for job in jobs]
        self._several = len(jobs) > 1 and len(self._devices) > 1
        try:
            with live(self._several) as show:
                while self._waiting or self._running:
                    self._lease()
                    show(self._showing())
                    if worker := self._workers.wait(0.5):
                        self._free.append(worker.device)
                        self._end(worker)
                    self._follow()
        except KeyboardInterrupt as interrupt:
            self._stop(signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
            raise

    def _showing(self) -> RenderableType:
        children = sorted(self._workers.running, key=lambda each: self._devices.index(each.device))
        cells = {name: _cells(lease.job) for name, lease in self._running.items()}
        return showing(children, cells, len(self._waiting))

    def _follow(self) -> None:
        """Enter which jobs wait in the queue of a scheduler, and which have begun."""
        for worker in self._workers.running:
            now, before = ("waiting", "running") if worker.waiting else ("running", "waiting")
            names = self._running[worker.name].job.names
            if moved := [name for name in names if self._ledger.status(name) == before]:
                self._ledger.mark(moved, now)
                self._ledger.write()

    def _lease(self) -> None:
        """Give each free device the first job that may have it."""
        for device in list(self._free):
            if lease := next((lease for lease in self._waiting if lease.avoids is not device), None):
                self._waiting.remove(lease)
                self._free.remove(device)
                self._start(lease, device)

    def _start(self, lease: _Lease, device: Device) -> None:
        job = lease.job
        self._ledger.begin(job.cells, job.resumed, device.name)
        self._ledger.write()
        console.heading(
            f"{job.name} on {device.name}: {_cells(job)}"
            if self._several
            else f"{job.name}: {count(len(job.cells))}"
        )
        self._workers.start(lease.file, device, not self._several, lease.again)
        self._running[job.name] = lease

    def _end(self, worker: Worker) -> None:
        lease, job = self._running[worker.name], self._running.pop(worker.name).job
        preempted = self._stopped or worker.code == ExitCode.PREEMPTED
        reason = INTERRUPTED if self._stopped else worker.reason()
        again = [] if preempted or lease.again else self._ledger.lost(job.names, killed=worker.code < 0)
        ended = [name for name in job.names if name not in again]
        self._ledger.end_job(ended, reason, alone=job.alone is not None, preempted=preempted)
        if again:
            self._retry(job.only(again, self._ledger.folder), worker)
        self._ledger.write()
        if ended:
            self._say(job.name, worker.device, ended)

    def _retry(self, job: Job, worker: Worker) -> None:
        """Put a job back before all others, for another device if there is one."""
        how = worker.ended()
        self._ledger.retry(job.names, f"{worker.device.name}: {how}")
        avoids = worker.device if len(self._devices) > 1 and not worker.device.queued else None
        self._waiting.insert(0, _Lease(job, self._write(job), again=True, avoids=avoids))
        where = " on another device" if avoids else ""
        console.warn(f"{job.name} on {worker.device.name}: {how}; {_cells(job)} once more{where}")

    def _say(self, job: str, device: Device, names: Sequence[str]) -> None:
        found = [self._ledger.status(name) for name in names]
        if self._several or any(status not in DONE for status in found):
            counts = ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))
            where = f" on {device.name}" if self._several else ""
            console.out.print(f"[bold]{job}[/]{escape(where)} ended: {counts}")
        reasons = (
            self._ledger.cells[name]["reason"] for name in names if self._ledger.status(name) == "failed"
        )
        for reason in dict.fromkeys(map(str, reasons)):
            console.err.print(f"[bold red]failed[/] {escape(reason)}")

    def _stop(self, number: int) -> None:
        """Send the signal to the workers and wait for them; a second interrupt kills them.

        Those that outlive this process are left alone.
        """
        self._stopped = True
        jobs = count(len(self._workers.running), "job")
        if self._workers.outlive:
            console.warn(f"{jobs} not ended: {self._workers.outlive}")
            return
        console.warn(f"ending {jobs}; a second interrupt kills without waiting")
        self._workers.send(number)
        while self._workers.running:
            try:
                if worker := self._workers.wait(0.5):
                    self._end(worker)
            except KeyboardInterrupt:
                self._workers.send(KILL)


def _cells(job: Job) -> str:
    """The one cell of a job by its name, several by their number."""
    return job.names[0] if len(job.names) == 1 else count(len(job.names))
