"""Run a sweep: plan its jobs, run each in a child process, collect the results, and report them."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes import OBJECTIVES
from runner.config.path_rules import check_sweep_folder
from runner.config.settings import SweepSettings
from runner.core import console
from runner.core.errors import ConfigError, ExitCode, Issue
from runner.core.hydra_quoting import hydra_value
from runner.core.paths import SWEEP_FILE
from runner.core.process.folder_lock import FolderLock, hold
from runner.core.secrets import masked
from runner.core.signals import terminate_as_interrupt
from runner.rules.scale import scale_summary
from runner.sweep.cells import Cell, check_cells
from runner.sweep.check_models import check_models
from runner.sweep.deciding import Deciding, deciding
from runner.sweep.devices import Device, choose
from runner.sweep.jobs import Job, followed_jobs, keys_of, make_jobs, record_jobs, write_job
from runner.sweep.leases import Leases
from runner.sweep.ledger import DONE, Ledger
from runner.sweep.opening import say_end, say_plan, say_verdicts, warn_of_other_code
from runner.sweep.processes import Children
from runner.sweep.slurm.queue import Held
from runner.sweep.slurm.queue import held as held_by_slurm
from runner.sweep.slurm.submit import check_installed
from runner.sweep.slurm.tasks import Tasks, places
from runner.sweep.workers import Workers


class Sweep:
    """A sweep in one folder, run in one batch or several; ``typed`` are the words of its command.

    Resuming a sweep is the same as starting it: cells that are done are left alone. With ``cluster``, the
    options of ``conf/hydra/launcher/slurm.yaml``, its workers are tasks of SLURM. One that ``seeks`` chooses
    the values of later batches by the deciding metric of earlier ones; ``changing`` says why it may choose
    others when it is started again.
    """

    def __init__(
        self,
        folder: Path,
        typed: Sequence[str],
        settings: SweepSettings,
        cluster: Mapping[str, Any] | None = None,
        seeks: bool = False,
        changing: str = "",
    ) -> None:
        self.folder, self.settings, self._cluster, self._seeks = folder, settings, cluster, seeks
        self._typed, self._changing = list(typed), changing
        self._lock: FolderLock | None = None
        self._ledger: Ledger | None = None
        self._deciding, self._cells = Deciding(None), list[Cell]()  # of all batches
        self._said: set[str] = set()  # warnings
        self._use = ""  # the command that chats with the best cell
        self._new = False  # whether nothing was in the folder before
        self.ran = self.planned = False  # whether a batch has passed its checks; whether none is to be run

    @property
    def command(self) -> str:
        """The command as typed, without secrets."""
        return masked(shlex.join(["python", "-m", "runner", *self._typed]))

    @property
    def ledger(self) -> Ledger:
        """The record of the sweep, once it has begun."""
        assert self._ledger is not None
        return self._ledger

    def run(self, cells: Sequence[Cell], axes: Mapping[str, Sequence[str]]) -> None:
        """Run the cells that have no result yet. Raises ``ConfigError`` before anything is started."""
        if issues := list(check_cells(cells)):
            raise ConfigError(issues)
        if self._only_planned(cells):
            return
        self._cells += cells
        sought = [axis for axis, values in axes.items() if len(values) > 1] if self._seeks else None
        self._deciding = deciding(self._cells, self.settings, sought)
        self._warn(self._deciding.notes)
        if self._cluster is None:
            devices = choose(self.settings.devices, any(cell.config.model.device_map for cell in cells))
        else:
            check_installed()
            devices = places(self.settings.devices if isinstance(self.settings.devices, int) else 1)
        self._open()
        try:
            with Children(self._lock) as local:
                self._run_on(devices, local, cells, axes)
        except BaseException as error:
            if not self.ran or isinstance(error, ConfigError):
                self._withdraw()
            raise

    def _run_on(
        self,
        devices: Sequence[Device],
        local: Children,
        cells: Sequence[Cell],
        axes: Mapping[str, Sequence[str]],
    ) -> None:
        """Check the cells that have no result, plan their jobs, and run these on the ``devices``."""
        held = self._held(cells)
        if issues := self.ledger.stale(cells):
            raise ConfigError(issues)
        self.ledger.add(cells, axes)
        self.ledger.record["deciding"] = dataclasses.asdict(self._deciding)
        if self._cluster is None:  # while this process checks the models and the rows
            left = [cell for cell in cells if self.ledger.status(cell.name) not in DONE]
            local.await_jobs(devices[: sum(cell.config.recipe in OBJECTIVES for cell in left)])
        jobs = self._plan(cells, check_models(cells), devices, held)
        workers: Workers = local
        if self._cluster is None:
            local.keep(devices[: len(jobs)])
            self._expect(jobs, on_cuda=devices[0].gpus == 1)
        else:
            workers, devices = Tasks(self.folder, self._cluster, held), places(len(jobs))
        record_jobs(self.ledger.jobs, jobs)
        self._run(jobs, Leases(devices, self.ledger, workers, lambda job: self._write(job, held)))

    def _run(self, jobs: Sequence[Job], leases: Leases) -> None:
        before, self.ran = self.ran, True
        self.ledger.write()
        try:
            with terminate_as_interrupt():
                leases.run(jobs)
        except ConfigError:  # SLURM does not take the jobs
            self.ran = before
            self.ledger.mark((name for job in jobs for name in job.names), "waiting")
            raise
        finally:
            self.ledger.write()

    def _withdraw(self) -> None:
        """Let go of the folder, in which nothing was run by this batch; of a new sweep nothing stays."""
        self.close()
        if self._new and not self.ran:
            shutil.rmtree(self.folder / "jobs", ignore_errors=True)
            (self.folder / SWEEP_FILE).unlink(missing_ok=True)

    def _only_planned(self, cells: Sequence[Cell]) -> bool:
        from runner.sweep.plan_sweep import is_planned, plan_sweep

        self.planned = is_planned(cells)
        if self.planned:
            plan_sweep(cells, self.settings, self._typed)
        return self.planned

    def outcome(self, cells: Sequence[Cell]) -> tuple[float | None, str | None]:
        """The mean of the deciding metric over cells (of one combination), or why there is none."""
        values, metric = [], self._deciding.metric
        if self.planned:
            return None, None
        for cell in cells:
            status, reason = self.ledger.status(cell.name), self.ledger.cells[cell.name]["reason"]
            if status not in DONE:
                return None, f"{cell.name} {status}" + (f": {reason}" if reason else "")
            values.append(self.ledger.metric(cell.name, metric) if metric else None)
        found = [value for value in values if value is not None]
        return (sum(found) / len(found), None) if len(found) == len(values) else (None, None)

    def finish(self) -> int:
        """Write the record, the leaderboard and the report, print what came of it, return the exit code."""
        if not self.ran:
            return ExitCode.CONFIG_ERROR
        code = self.ledger.finish()
        try:
            self._conclude()
        except Exception as error:  # the cells are what counts, and they are there
            console.warn(f"the leaderboard or the report could not be made: {type(error).__name__}: {error}")
        say_end(self.ledger, self._use, "" if code == ExitCode.COMPLETED else self.resume_command())
        if code != ExitCode.COMPLETED and self._changing:
            console.warn(f"that command does not only resume: {self._changing}")
        self.close()
        return code

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write(self, job: Job, held: Mapping[str, Held]) -> Path:
        """The file of a job, written but for one that SLURM has."""
        if job.name in held:
            return self.folder / "jobs" / f"{job.name}.json"
        return write_job(job, self.folder, self.command, self.settings)

    def _held(self, cells: Sequence[Cell]) -> Mapping[str, Held]:
        """The jobs that an earlier start has given to SLURM, which has them still.

        Raises ``ConfigError`` where this start cannot follow them.
        """
        held = held_by_slurm(self.folder / "jobs" / "slurm")
        if held and self._cluster is None:
            named = ", ".join(f"{job} as {found.entry.id}" for job, found in held.items())
            hint = "hydra/launcher=slurm follows its jobs, scancel ends them"
            raise ConfigError(Issue(str(self.folder), f"SLURM has jobs of this sweep: {named}", hint))
        keys = {cell.name: cell.key for cell in cells}
        issues = []
        for job, found in held.items():
            for name, key in keys_of(self.folder / "jobs" / f"{job}.json").items():
                if keys.get(name, key) != key:
                    message = "SLURM has it with another config, other rows or another model"
                    hint = f"name a new output_dir, or end that one: scancel {found.entry.id}"
                    issues.append(Issue(name, message, hint))
        if issues:
            raise ConfigError(issues)
        return held

    def _open(self) -> None:
        if self._lock is None:
            if issue := check_sweep_folder(self.folder):
                raise ConfigError(issue)
            self._new = not (self.folder / SWEEP_FILE).exists()
            self._lock = hold(self.folder / "jobs", "runs this sweep")
        if self._ledger is None:
            self._ledger = Ledger(self.folder, self.command, self.settings)

    def _plan(
        self,
        cells: Sequence[Cell],
        of_models: Mapping[str, str],
        devices: Sequence[Device],
        held: Mapping[str, Held],
    ) -> list[Job]:
        """The jobs that are still to be run, those that are ``held`` first, after saying so."""
        ledger = self.ledger
        done = [cell for cell in cells if ledger.status(cell.name) in DONE]
        followed = followed_jobs(cells, held, ledger)
        taken = {*(cell.name for cell in done), *(name for job in followed for name in job.names)}
        left = [cell for cell in cells if cell.name not in taken]
        over = {cell.name: why for cell in left if (why := ledger.given_up(cell.name))}
        todo = [cell for cell in left if cell.name not in over]
        ledger.mark((cell.name for cell in todo), "waiting")
        jobs = make_jobs(todo, of_models, self.settings, len(devices), ledger)
        ids = {job: found.entry.id for job, found in held.items()}
        say_plan(self.folder, cells, jobs, len(done), over, [device.name for device in devices], ids)
        warn_of_other_code(done, jobs, ledger)
        self._warn(scale_summary((cell.name, cell.config.lora) for cell in cells))
        return [*followed, *jobs]

    def _expect(self, jobs: Sequence[Job], on_cuda: bool) -> None:
        """Say what the jobs are expected to take. Raises ``ConfigError`` where a cell cannot fit its GPU."""
        from runner.sweep.verdicts import foresee

        try:
            say_verdicts(foresee(jobs, self.settings, on_cuda))
        except KeyboardInterrupt:
            self.ran = True  # the cells are there to be resumed
            raise

    def _warn(self, notes: Iterable[str]) -> None:
        for note in notes:
            if note not in self._said:
                self._said.add(note)
                console.warn(note)

    def _conclude(self) -> None:
        from runner.reports import run_report
        from runner.reports.leaderboard import leaderboard
        from runner.reports.sweep_report import use_command, write_sweep_report
        from runner.reports.table import print_leaderboard

        board = leaderboard(self.folder)
        self._use = use_command(board)
        self.ledger.record |= {"best": board.best, "notes": board.sweep.notes}
        self.ledger.write()
        board.write(self.folder)
        console.out.print()
        print_leaderboard(board)
        self._warn(board.sweep.notes)
        for folder in self.ledger.without_report():
            run_report.write_report(folder)
        write_sweep_report(self.folder)

    def resume_command(self) -> str:
        """The command that runs the cells that are not done."""
        kept = [word for word in self._typed if not word.startswith("output_dir=")]
        return shlex.join(["python", "-m", "runner", *kept, f"output_dir={hydra_value(str(self.folder))}"])
