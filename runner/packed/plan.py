"""How a pack is run: what its trainer is told by what stands around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.packed.cell import CellState
from runner.speed.pieces import Pieces


@dataclass(frozen=True)
class PackPlan:
    """How a pack is run.

    ``cells_per_pass`` is the estimate of how many cells share a pass, ``longest`` the tokens of the longest
    sequence, ``pieces`` are those of ``speed``. A checkpoint is written when ``checkpoint_seconds`` have
    passed since the last. ``after_step`` is called between steps and may ``drop`` cells, ``on_step`` with
    each logged step and the losses of the cells, ``on_end`` with a cell that leaves the pack early.
    """

    cells_per_pass: int
    longest: int
    pieces: Pieces
    checkpoint_seconds: float
    after_step: Callable[[Any], None]
    on_step: Callable[[int, list[float]], None]
    on_end: Callable[[CellState], None]
