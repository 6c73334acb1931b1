"""What a sweep shows on a terminal while it runs: which job is on which device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runner.core import console
from runner.core.secrets import masked
from runner.sweep.opening import count
from runner.sweep.workers import Worker


@contextlib.contextmanager
def live(several: bool) -> Iterator[Callable[[RenderableType], None]]:
    """Lines that are replaced, where the output is a terminal and ``several`` jobs at once leave it to us."""
    if not (several and console.out.is_terminal):
        yield lambda lines: None
        return
    with Live(console=console.out, transient=True, refresh_per_second=4) as lines:
        yield lines.update


def showing(workers: Sequence[Worker], cells: Mapping[str, str], waiting: int) -> RenderableType:
    """A line a worker: its device, its job, for how long, of which ``cells`` (by job), and its last words."""
    table = Table.grid(padding=(0, 2))
    for share in (None, None, None, 1, 1):
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=share)
    table.expand = True
    for worker in workers:
        minutes, seconds = divmod(int(time.monotonic() - worker.began), 60)
        parts = (
            worker.device.name,
            worker.name,
            f"{minutes}:{seconds:02}",
            cells[worker.name],
            worker.last.strip(),
        )
        table.add_row(*(Text(masked(part)) for part in parts))
    if waiting:
        table.add_row("", f"{count(waiting, 'job')}", "", "waiting", "")
    return table
