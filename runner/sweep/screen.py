"""What a sweep shows while it runs: its plan, and on a terminal which job runs on which device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from runner.core import console
from runner.core.secrets import masked
from runner.sweep.cells import Cell
from runner.sweep.devices import Device
from runner.sweep.jobs import Job
from runner.sweep.ledger import Ledger
from runner.sweep.processes import Child

_SHOWN = 10  # lines of a kind in the plan


@contextlib.contextmanager
def live(several: bool) -> Iterator[Callable[[RenderableType], None]]:
    """Lines that are replaced, where the output is a terminal and ``several`` jobs at once leave it to us."""
    if not (several and console.out.is_terminal):
        yield lambda lines: None
        return
    with Live(console=console.out, transient=True, refresh_per_second=4) as lines:
        yield lines.update


def showing(children: Sequence[Child], cells: Mapping[str, str], waiting: int) -> RenderableType:
    """A line a child: its device, its job, for how long, of which ``cells`` (by job), and its last words."""
    table = Table.grid(padding=(0, 2))
    for share in (None, None, None, 1, 1):
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=share)
    table.expand = True
    for child in children:
        minutes, seconds = divmod(int(time.monotonic() - child.began), 60)
        parts = (
            child.device.name,
            child.name,
            f"{minutes}:{seconds:02}",
            cells[child.name],
            child.last.strip(),
        )
        table.add_row(*(Text(masked(part)) for part in parts))
    if waiting:
        table.add_row("", f"{counted(waiting, 'job')}", "", "waiting", "")
    return table


def say_plan(
    folder: Path,
    cells: Sequence[Cell],
    jobs: Sequence[Job],
    done: int,
    over: Mapping[str, str],
    devices: Sequence[Device],
) -> None:
    """Print which jobs are to be run on which devices, which cells run alone and why, how many are done."""
    axes = dict.fromkeys(key for cell in cells for key in cell.values)
    named = f" over {', '.join(axes)}" if axes else ""
    console.out.print(f"[bold]sweep[/]  {counted(len(cells))}{escape(named)}")
    console.out.print(f"[bold]folder[/] {escape(str(folder))}")
    if len(devices) > 1:
        names = ", ".join(device.name for device in devices)
        console.out.print(f"[bold]on[/]     {escape(names)}; what each prints is in jobs/*.log")
    if done:
        console.out.print(f"[bold]done[/]   {counted(done)} already")
    for job in jobs:
        if job.alone is None:
            again = ", from its checkpoint" if job.resumed else ""
            console.out.print(f"[bold]{job.name}[/] {counted(len(job.cells))} together{again}")
    reasons: dict[str, list[str]] = {}
    for job in jobs:
        if job.alone:
            reasons.setdefault(job.alone, []).extend(job.names)
    for reason, names in reasons.items():
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        console.out.print(f"[bold]alone[/]  {counted(len(names))}, as {escape(reason)}: {escape(shown)}")
    for name, why in list(over.items())[:_SHOWN]:
        console.warn(f"{name} is not run again: {why}")
    if not jobs:
        console.out.print("nothing is left to run")


def warn_of_other_code(done: Sequence[Cell], jobs: Sequence[Job], ledger: Ledger) -> None:
    """Say which results are kept, and which cells are resumed, although other code computed them."""
    kept = [cell.name for cell in done if ledger.cells[cell.name]["other_code"]]
    resumed = [name for job in jobs if job.resumed for name in job.names if ledger.cells[name]["other_code"]]
    made = "other code, or other versions of the libraries"
    again = "sweep.redo=code runs them from the beginning"
    if kept:
        console.warn(f"{listed(kept)} kept, computed by {made}; {again}")
    if resumed:
        console.warn(f"{listed(resumed)} resumed from a checkpoint of {made}; {again}")


def listed(names: Sequence[str]) -> str:
    """How many cells, and the names of the first."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{counted(len(names))} ({shown})"


def counted(number: int, what: str = "cell") -> str:
    """A number of cells, or of something else."""
    return f"{number} {what}{'s' * (number != 1)}"
