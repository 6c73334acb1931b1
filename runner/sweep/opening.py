"""What a sweep prints before its first job, and after its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from runner.core import console
from runner.sweep.cells import Cell
from runner.sweep.jobs import Job
from runner.sweep.ledger import Ledger

if TYPE_CHECKING:
    from runner.sweep.verdicts import Verdict

_SHOWN = 10  # lines of a kind, and names in one


def say_plan(
    folder: Path | None,
    cells: Sequence[Cell],
    jobs: Sequence[Job],
    done: int,
    over: Mapping[str, str],
    devices: Sequence[str] = (),
    held: Mapping[str, str] | None = None,
) -> None:
    """Print which jobs are to be run on which devices, which cells run alone and why, and how many are done;
    without a ``folder`` nothing will be. ``held`` are the ids of jobs that a scheduler has already."""
    axes = dict.fromkeys(key for cell in cells for key in cell.values)
    named = f" over {', '.join(axes)}" if axes else ""
    console.out.print(f"[bold]sweep[/]  {count(len(cells))}{escape(named)}")
    if folder is not None:
        console.out.print(f"[bold]folder[/] {escape(str(folder))}")
    if len(devices) > 1:
        console.out.print(f"[bold]on[/]     {escape(', '.join(devices))}; what each prints is in jobs/*.log")
    if done:
        console.out.print(f"[bold]done[/]   {count(done)} already")
    for name, number in (held or {}).items():
        console.out.print(f"[bold]{name}[/] SLURM has it as {number}: it is followed")
    for job in jobs:
        if job.alone is None:
            again = ", from its checkpoint" if job.resumed else ""
            console.out.print(f"[bold]{job.name}[/] {count(len(job.cells))} together{again}")
    reasons: dict[str, list[str]] = {}
    for job in jobs:
        if job.alone:
            reasons.setdefault(job.alone, []).extend(job.names)
    for reason, names in reasons.items():
        console.out.print(
            f"[bold]alone[/]  {count(len(names))}, as {escape(reason)}: {escape(_short(names))}"
        )
    for name, why in list(over.items())[:_SHOWN]:
        console.warn(f"{name} is not run again: {why}")
    if not jobs and not held:
        console.out.print("nothing is left to run")


def say_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print what the jobs are expected to take, those that read alike together."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.line(), []).append(verdict)
    for line, alike in groups.items():
        names = [each.job.names[0] if each.job.alone else each.job.name for each in alike]
        every = f"each of {len(names)} jobs" if len(names) == len(verdicts) > _SHOWN else _short(names)
        said = escape(f"{every}: {line}")
        console.out.print(
            f"[bold]plan[/]   {said}" if alike[0].fits else f"[bold]plan[/]   [yellow]{said}[/]"
        )


def say_refused(verdicts: Sequence[Verdict]) -> None:
    """Print why jobs cannot be run, and what would change that, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        if issue := verdict.refusal:
            reasons.setdefault(f"{issue.message}; {issue.hint}", []).extend(verdict.job.names)
    for reason, names in reasons.items():
        said = escape(f"{_short(names)}: {reason}")
        console.out.print(f"[bold red]cannot run[/] {said}", soft_wrap=True)


def say_end(ledger: Ledger, use: str, resume: str) -> None:
    """Print what came of the cells and where it is; ``use`` is the command that uses the best one, ``resume``
    the one that runs those without a result."""
    record, statuses = ledger.record, [entry["status"] for entry in ledger.cells.values()]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    colour = {"completed": "green", "preempted": "yellow"}.get(record["status"], "red")
    console.out.print(f"\n[bold {colour}]sweep {record['status']}[/]  {len(statuses)} cells: {counts}")
    console.out.print(f"[bold]report[/] {escape(str(ledger.folder / 'report.html'))}")
    if best := record["best"]:
        console.out.print(f"[bold]best[/]   {escape(str(ledger.folder / best))}")
        if use:
            console.out.print(f"[bold]use it[/] {escape(use)}")
    if resume:
        console.out.print(f"[bold]resume with[/] {escape(resume)}")


def warn_of_other_code(done: Sequence[Cell], jobs: Sequence[Job], ledger: Ledger) -> None:
    """Say which results are kept, and which cells are resumed, although other code computed them."""
    kept = [cell.name for cell in done if ledger.cells[cell.name]["other_code"]]
    resumed = [name for job in jobs if job.resumed for name in job.names if ledger.cells[name]["other_code"]]
    made = "other code, or other versions of the libraries"
    again = "sweep.redo=code runs them from the beginning"
    if kept:
        console.warn(f"{_listed(kept)} kept, computed by {made}; {again}")
    if resumed:
        console.warn(f"{_listed(resumed)} resumed from a checkpoint of {made}; {again}")


def _listed(names: Sequence[str]) -> str:
    return f"{count(len(names))} ({_short(names)})"


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def count(number: int, what: str = "cell") -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {what}{'s' * (number != 1)}"
