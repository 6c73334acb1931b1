"""What the queue of a sweep's jobs asks of the processes that run them, wherever these are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from runner.sweep.devices import Device


class Worker(Protocol):
    """A process that runs the job ``name`` on a ``device``.

    ``last`` is the last line that is known of it, ``began`` when it was started (``time.monotonic()``), and
    ``waiting`` says that it has not begun yet, in the queue of a scheduler.
    """

    name: str
    device: Device
    last: str
    began: float
    waiting: bool

    @property
    def code(self) -> int:
        """The exit code of one that has ended; negative: the signal that ended it."""
        ...

    def ended(self) -> str:
        """How it ended, in words."""
        ...

    def reason(self) -> str:
        """How it ended, with the last lines of its log."""
        ...


class Workers(Protocol):
    """Starts workers and says which of them have ended."""

    @property
    def outlive(self) -> str:
        """Where they go on when this process ends: how they are found again and ended. Else empty."""
        ...

    @property
    def running(self) -> Sequence[Worker]:
        """Those that have been started and not been returned by ``wait``."""
        ...

    def start(self, file: Path, device: Device, echo: bool, again: bool) -> None:
        """Start the job in a file; ``echo`` asks for its output here, ``again`` keeps its earlier log."""
        ...

    def wait(self, seconds: float) -> Worker | None:
        """The next one that ends; None when none does in that time."""
        ...

    def send(self, number: int) -> None:
        """Send a signal to all."""
        ...
