"""The leaderboard of a sweep: a row for each group of repeats, best first, as CSV and in the terminal.

Which rows are within noise of the best, and what that means: ``runner.reports.significance``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core.atomic import write_atomically
from runner.core.metric_names import find_metric, in_record
from runner.reports.results import STATUSES, CellResult, Sweep, read_sweep
from runner.reports.significance import CONFIDENCE, Verdict, by_rows, by_seeds, row_losses
from runner.reports.ties import order, tie_note

_LOSSES = ("eval_loss", "loss")  # of which held_out.jsonl has every row
# What the mark "other code" of a row means.
OTHER_CODE = (
    "other code: finished by another version of the code and kept; sweep.redo=code trains these cells again"
)
_UNKNOWN = "one run a cell, and only a loss can be compared row by row"


@dataclass(frozen=True)
class Spread:
    """A number over repeats: mean, standard deviation (None for a single value), and how many."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One group of repeats. ``scores`` are over its completed cells, the deciding metric among them.

    ``rank`` counts from 1 and is None for a group that has no result; ``best`` is its median completed cell,
    of two the worse one: the best repeat would be the choice of a lucky seed.
    ``noise`` compares it with the best row and is None for that row and for those without a rank.
    """

    group: str
    cells: tuple[CellResult, ...]
    status: str
    reason: str
    scores: dict[str, Spread]
    scale: float | None
    parameters: float | None
    seconds: float | None
    tokens_per_second: float | None
    best: str | None = None
    rank: int | None = None
    noise: Verdict | None = None

    @property
    def values(self) -> dict[str, str]:
        """The values of the axes."""
        return self.cells[0].values

    @property
    def completed(self) -> list[CellResult]:
        """Its completed cells."""
        return [cell for cell in self.cells if cell.status == "completed"]

    @property
    def other_code(self) -> str:
        """Which of its results were made by another version of the code: empty for none of them."""
        count = sum(cell.other_code for cell in self.completed)
        return "" if not count else "other code" if count == len(self.completed) else f"{count} other code"


@dataclass(frozen=True)
class Leaderboard:
    """The rows of a sweep, ranked ones first; ``method`` says how noise was estimated, or why not."""

    sweep: Sweep
    metric: str
    higher: bool
    rows: list[Row]
    method: str

    @property
    def best(self) -> str | None:
        """The folder name of the best cell: the median repeat of the group with the best mean."""
        return self.rows[0].best if self.rows and self.rows[0].rank else None

    @property
    def best_cell(self) -> CellResult | None:
        """The cell that ``best`` names."""
        return next((cell for cell in self.sweep.cells if cell.name == self.best), None)

    @property
    def ranked(self) -> list[Row]:
        """The rows that have a result."""
        return [row for row in self.rows if row.rank]

    @property
    def note(self) -> str:
        """By which metric the rows are ranked, and why not by the usual one; empty where it is that one."""
        return "" if self.sweep.unranked else str(self.sweep.deciding.get("note") or "")

    @property
    def other_code(self) -> str:
        """What the mark of rows made by another version of the code means; empty where no row has it."""
        return OTHER_CODE if any(row.other_code for row in self.rows) else ""

    @property
    def scores(self) -> list[str]:
        """The scores that some row has: the deciding metric, held-out loss, then the task's own."""
        return score_names(self.sweep, self.metric)

    def write(self, folder: Path) -> Path:
        """Write ``leaderboard.csv`` atomically, a line a group, and return its path."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self._header())
        writer.writerows(self._line(row) for row in self.rows)
        write_atomically(folder / "leaderboard.csv", stream.getvalue())
        return folder / "leaderboard.csv"

    def _header(self) -> list[str]:
        scores = [name for score in self.scores for name in (score, f"{score}_sd", f"{score}_n")]
        return [
            *("rank", "group", "status", "cells", *self.sweep.axes, "scale", *scores),
            *("trainable_parameters", "seconds", "tokens_per_second", "within_noise", "noise"),
            *("best_cell", "reason", "other_code"),
        ]

    def _line(self, row: Row) -> list[Any]:
        scores: list[Any] = []
        for name in self.scores:
            found = row.scores.get(name)
            scores += [found.mean, found.deviation, found.n] if found else [None, None, 0]
        within, why = "", ""
        if row.rank == 1:
            within = "best"
        elif row.noise:
            within = {True: "yes", False: "no", None: "unknown"}[row.noise.within]
            why = row.noise.why
        facts = (row.parameters, row.seconds, row.tokens_per_second)
        axes = [row.values.get(axis) for axis in self.sweep.axes]
        start = [row.rank, row.group, row.status, len(row.cells), *axes, row.scale, *scores]
        other_code = sum(cell.other_code for cell in row.completed)
        return [_plain(value) for value in (*start, *facts, within, why, row.best, row.reason, other_code)]


def leaderboard(folder: Path) -> Leaderboard:
    """Rank the cells of a sweep folder, finished or not. What ties for the first place is in its notes."""
    sweep = read_sweep(folder)
    metric = metric_of(sweep)
    higher = find_metric(metric).higher
    groups: dict[str, list[CellResult]] = {}
    for cell in sweep.cells:
        groups.setdefault(cell.group, []).append(cell)
    rows = [_row(name, cells, sweep, metric, higher) for name, cells in groups.items()]
    if sweep.unranked:
        whys = [sweep.unranked if row.completed else row.reason for row in rows]
        rows = [replace(row, best=None, reason=why) for row, why in zip(rows, whys, strict=True)]
    deciding = [metric, *sweep.tie_breakers]
    means = {
        row.group: {name: _mean(cell.metric(name) for cell in row.completed) for name in deciding}
        for row in rows
        if row.best is not None
    }
    ranked = sorted((row for row in rows if row.group in means), key=lambda row: order(means[row.group]))
    note = tie_note(
        [means[row.group] for row in ranked],
        "cells" if len(sweep.cells) == len(groups) else "combinations of values",
    )
    sweep = replace(sweep, notes=[*sweep.notes, *filter(None, [note])])
    others = sorted((row for row in rows if row.best is None), key=lambda row: STATUSES.index(row.status))
    verdicts, method = _noise(ranked, metric)
    ranked = [
        replace(row, rank=rank, noise=verdict)
        for rank, (row, verdict) in enumerate(zip(ranked, verdicts, strict=True), start=1)
    ]
    return Leaderboard(sweep, metric, higher, ranked + others, method)


def metric_of(sweep: Sweep) -> str:
    """The metric that decides, as run.json names it (``exact_match`` may stand for ``exact_match_after``)."""
    wanted = str(sweep.deciding.get("metric") or sweep.settings.get("metric") or "eval_loss")
    return in_record(wanted, (name for cell in sweep.cells for name in cell.metrics)) or wanted


def score_names(sweep: Sweep, metric: str) -> list[str]:
    """The deciding metric, the held-out loss, and the task's own scores, as far as some cell has them."""
    known = dict.fromkeys(name for cell in sweep.cells for name in cell.metrics)
    wanted = [metric, *(name for name in known if name == "eval_loss" or name.endswith("_after"))]
    return list(dict.fromkeys(wanted))


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one number."""
    mean, n = math.fsum(values) / len(values), len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Spread(mean, deviation, n)


def _row(group: str, cells: list[CellResult], sweep: Sweep, metric: str, higher: bool) -> Row:
    completed = [cell for cell in cells if cell.status == "completed"]
    scored = [cell for cell in completed if math.isfinite(cell.metric(metric))]
    scores = {}
    for name in score_names(sweep, metric):
        if values := _finite(cell.metric(name) for cell in completed):
            scores[name] = spread(values)
    best = None
    if scored:
        scored.sort(key=lambda cell: cell.metric(metric), reverse=higher)
        best = scored[len(scored) // 2].name
    status = "completed" if completed else min((cell.status for cell in cells), key=STATUSES.index)
    return Row(
        group=group,
        cells=tuple(cells),
        status=status,
        reason="; ".join(filter(None, dict.fromkeys(_reasons(cells, completed, scored, metric)))),
        scores=scores,
        scale=next((scale for cell in cells if (scale := cell.scale) is not None), None),
        parameters=_mean(cell.metric("trainable_parameters") for cell in cells),
        seconds=_mean(_seconds(cell) for cell in completed),
        tokens_per_second=_mean(cell.metric("tokens_per_second") for cell in completed),
        best=best,
    )


def _reasons(
    cells: list[CellResult], completed: list[CellResult], scored: list[CellResult], metric: str
) -> Iterable[str]:
    """Why a group has no result, or rests on fewer cells than it has."""
    if 0 < len(scored) < len(cells):
        yield f"{len(scored)} of {len(cells)} repeats"
    for cell in completed:
        if cell not in scored:
            missing = cell.metrics.get(metric) is None
            yield f"run.json has no {metric}" if missing else f"{metric} is not finite"
    alike = len({cell.status for cell in cells}) == 1  # the row's own status says it
    for cell in cells:
        if cell.status != "completed":
            yield cell.reason if alike else f"{cell.status} {cell.reason}".strip()


def _noise(ranked: list[Row], metric: str) -> tuple[list[Verdict | None], str]:
    """Each row compared with the best, and by which method."""
    if len(ranked) < 2:
        return [None] * len(ranked), ""
    repeats = [_repeats(row, metric) for row in ranked]
    if paired := by_seeds(repeats):
        verdicts = paired
        method = (
            f"two-sided t test at {CONFIDENCE:.0%} on the difference to the best at equal seeds, noise "
            f"estimated from {sum(map(len, repeats))} cells of {len(ranked)} rows"
        )
    elif metric in _LOSSES:
        folders = [next(cell.folder for cell in row.cells if cell.name == row.best) for row in ranked]
        losses = [row_losses(folder) for folder in folders]
        verdicts = [by_rows(losses[0], other) for other in losses[1:]]
        method = f"paired bootstrap over the held-out rows at {CONFIDENCE:.0%}, one run a cell"
        if all(verdict.within is None for verdict in verdicts):
            method = f"unknown: {verdicts[0].why}"
    else:
        verdicts, method = [Verdict(None, _UNKNOWN)] * (len(ranked) - 1), f"unknown: {_UNKNOWN}"
    return [None, *verdicts], method


def _repeats(row: Row, metric: str) -> list[tuple[Any, float]]:
    """Seed and score of a row's completed cells."""
    scores = ((cell.record.get("seed"), cell.metric(metric)) for cell in row.completed)
    return [(seed, score) for seed, score in scores if math.isfinite(score)]


def _seconds(cell: CellResult) -> float:
    seconds = cell.record.get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else math.nan


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Iterable[float]) -> float | None:
    found = _finite(values)
    return math.fsum(found) / len(found) if found else None


def _plain(value: Any) -> Any:
    """Whole numbers without a point, nothing for what is not known, text on one line."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return "" if value is None else " ".join(value.split()) if isinstance(value, str) else value
