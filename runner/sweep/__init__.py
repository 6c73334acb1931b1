"""Sweeps: their cells, how they are run, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.cli.command import Command
    from runner.sweep.run_sweep import Sweep


@dataclass
class Handle:
    """What the entry and the launcher share: the words as typed, and the sweep once it has begun."""

    typed: list[str]
    command: Command
    sweep: Sweep | None = None
