"""Progress of long work: a bar in a terminal, some plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from runner.core.console import out

_SETTLED = 6  # logged steps after which the time of one says something
_PLAIN_LINES = 10  # progress lines of a phase when the output is no terminal


class Progress:
    """A progress bar in a terminal, ten plain lines elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done, self._printed = label, total, 0, 0
        self._live = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task = self._live.add_task(label, total=total, detail="")

    def __enter__(self) -> Self:
        self._live.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def advance(self, count: int = 1) -> None:
        """Count some more as done."""
        self.show(self._done + count, "")

    def show(self, done: int, detail: str, total: int | None = None) -> None:
        """Set what is done, with a text behind the bar."""
        self._done, self._total = done, total or self._total
        self._live.update(self._task, completed=done, total=self._total, detail=detail)
        part = done * _PLAIN_LINES // max(self._total, 1)
        if not out.is_terminal and part > self._printed:
            self._printed = part
            out.print(f"{self._label} {done}/{self._total} {detail}".rstrip())


class TrainingProgress(Progress):
    """Steps with the loss of the last one."""

    def __init__(self, steps: int) -> None:
        super().__init__("training", steps)

    def update(self, entry: dict[str, Any]) -> None:
        """Show a logged step."""
        loss = entry.get("loss")
        if loss is not None:
            detail = f"loss {loss:.4f}  lr {entry.get('learning_rate', 0):.2e}"
            self.show(entry["step"], detail, entry.get("max_steps"))


class PackProgress(Progress):
    """Steps of a pack with the lowest and the highest loss of the last one."""

    def __init__(self, steps: int) -> None:
        super().__init__("training", steps)
        self._times: list[float] = []

    def update_pack(self, step: int, losses: list[float]) -> None:
        """Show a logged step; after a few of them, how long it will take."""
        self.show(step, f"{len(losses)} cells, loss {min(losses):.3f} to {max(losses):.3f}")
        self._times.append(time.monotonic())
        if len(self._times) == _SETTLED:
            left = (self._times[-1] - self._times[1]) / (_SETTLED - 2) * (self._total - step)
            shown = f"{left:.0f} s" if left < 120 else f"{left / 60:.1f} min"
            out.print(f"[bold]time[/] about {shown} of training left")
