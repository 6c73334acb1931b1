"""Cells that tie at the metric that decides: which of them is named best, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.sweep_folder import cell, make_sweep
from runner.reports.leaderboard import leaderboard
from runner.reports.sweep_report import write_sweep_report

TIED = [{"eval_accuracy": 1.0, "eval_f1": 1.0}] * 2 + [{"eval_accuracy": 0.5, "eval_f1": 0.9}]


@pytest.mark.parametrize(
    ("losses", "ties", "best", "said"),
    [
        ((0.5, 0.4, 0.1), ["eval_loss", "eval_f1"], "r=2", ": of these the lowest held-out loss decides"),
        ((0.5, 0.4, 0.1), ["eval_f1", "eval_loss"], "r=2", ": of these the lowest held-out loss decides"),
        ((0.5, None, 0.1), ["eval_loss"], "r=1", ": of these the lowest held-out loss decides"),
        ((0.5, 0.5, 0.1), ["eval_loss"], "r=1", ": the first is named best"),
        ((0.5, 0.4, 0.1), [], "r=1", ": the first is named best"),
    ],
)
def test_cells_that_tie_are_ranked_by_the_next_metric_and_it_is_said(
    tmp_path: Path, losses: tuple, ties: list[str], best: str, said: str
) -> None:
    cells = [cell(f"r={n}", losses[n - 1], metrics=found) for n, found in enumerate(TIED, start=1)]
    deciding = {"metric": "eval_accuracy", "note": "", "ties": ties}
    board = leaderboard(make_sweep(tmp_path / "s", cells, deciding=deciding))
    assert board.best == best
    assert board.sweep.notes == [f"2 cells tie at accuracy 100 %{said}"]
    write_sweep_report(tmp_path / "s", board)
    assert board.sweep.notes[0] in (tmp_path / "s/report.html").read_text(encoding="utf-8")


def test_no_tie_is_said_of_others_than_the_first(tmp_path: Path) -> None:
    board = leaderboard(make_sweep(tmp_path, [cell("r=1", 0.5), cell("r=2", 0.4), cell("r=3", 0.5)]))
    assert (board.best, board.sweep.notes) == ("r=2", [])
