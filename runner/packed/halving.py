"""Successive halving (arXiv:1502.07943): at chosen fractions of the run a pack drops its worst cells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from runner.config.settings import SweepSettings
from runner.core.atomic import json_text, write_atomically
from runner.packed.cell import CellState


class Pack(Protocol):
    """What halving needs of the trainer."""

    cells: list[CellState]
    state: Any  # transformers' TrainerState

    def evaluate(self) -> dict[str, float]:
        """Measure the held-out loss of all cells."""
        ...

    def save_checkpoint(self) -> None:
        """Write a checkpoint between two steps."""
        ...

    def drop(self, gone: list[int]) -> None:
        """Take cells out."""
        ...


DECISIONS = "halved.json"  # in the folder of the pack's checkpoints: what was decided, before it takes effect


def decisions(work: Path) -> dict[str, dict[str, Any]]:
    """By fraction of the run, the cells dropped there and why."""
    file = work / DECISIONS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Halving:
    """What a pack does between two steps: record who ended, and drop the worst where it is time to.

    A decision is written down first, so that a pack that is killed and started again comes to the same one.
    """

    def __init__(self, settings: SweepSettings, steps: int, work: Path) -> None:
        self._due = {max(1, math.ceil(fraction * steps)): fraction for fraction in settings.halving or []}
        self._keep, self._file = settings.keep, work / DECISIONS
        self._decided = decisions(work)

    def __call__(self, trainer: Pack) -> None:
        """Called after every step."""
        step = trainer.state.global_step
        for due, fraction in self._due.items():
            if step == due and str(fraction) not in self._decided:
                self._decide(trainer, fraction)
        dropped = {name: facts for found in self._decided.values() for name, facts in found.items()}
        gone = [
            index
            for index, cell in enumerate(trainer.cells)
            if cell.name in dropped and step >= dropped[cell.name]["step"]
        ]
        for index in gone:
            trainer.cells[index].ended = {
                "status": "dropped",
                "dropped": dropped[trainer.cells[index].name],
            }
        trainer.drop(gone)

    def _decide(self, trainer: Pack, fraction: float) -> None:
        if any(cell.measured != trainer.state.global_step for cell in trainer.cells):
            trainer.evaluate()
        trainer.save_checkpoint()  # with all of them: those that are kept can resume from here
        ranked = sorted(trainer.cells, key=lambda cell: cell.scores["eval_loss"])
        kept = max(1, math.ceil(self._keep * len(ranked)))
        self._decided[str(fraction)] = {
            cell.name: {
                "step": trainer.state.global_step,
                "fraction": fraction,
                "eval_loss": cell.scores["eval_loss"],
                "rank": rank,
                "of": len(ranked),
            }
            for rank, cell in enumerate(ranked, 1)
            if rank > kept
        }
        write_atomically(self._file, json_text(self._decided))
