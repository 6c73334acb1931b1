"""The loss curves of all cells over each other, and the boxes by which a reader chooses among them."""

from __future__ import annotations

import math
from typing import Any

from runner.core.metric_names import find_metric
from runner.reports.figures import Line, Point, line_figure
from runner.reports.labels import cell_label, short_names
from runner.reports.leaderboard import Leaderboard
from runner.reports.results import STATUSES, CellResult
from runner.reports.series import points_of, smooth

_SMOOTH = 40  # the window of the mean is this part of the logged steps
_COLOURS = 6  # the page's --series-1 to --series-6


def curves_context(board: Leaderboard, foremost: str = "") -> dict[str, Any] | None:
    """Figures of training and held-out loss, and filters: a name, and (value, colour, cells) for each.

    Colours stand for the values of the axis ``foremost``, if it is given and there is a choice.
    """
    found = [(cell, _losses(cell, "loss"), _losses(cell, "eval_loss")) for cell in board.sweep.cells]
    found = [item for item in found if any(math.isfinite(y) for points in item[1:] for _, y in points)]
    if not found:
        return None
    cells = [cell for cell, _, _ in found]
    filters = _filters(board, cells)
    axes = [filter_["axis"] for filter_ in filters]
    painted = axes.index(foremost) if foremost in axes else 0 if axes else None
    window = max(1, round(max(len(points) for _, points, _ in found) / _SMOOTH))
    trained = [smooth(points, window) for _, points, _ in found]
    held_out = [points for _, _, points in found]
    figures = []
    for key, curves in (("train_loss", trained), ("eval_loss", held_out)):
        lines = [
            _line(board, n, cell, points, filters, painted)
            for n, (cell, points) in enumerate(zip(cells, curves, strict=True))
            if points
        ]
        # one evaluation a cell is no curve, and the leaderboard has that number
        single = key == "eval_loss" and any(trained) and all(len(line.points) == 1 for line in lines)
        if lines and not single:
            figures.append(_figure(lines, find_metric(key).title, window if key == "train_loss" else 1))
    return {"figures": figures, "filters": filters, "painted": painted, "cells": len(cells)}


def _figure(lines: list[Line], name: str, window: int) -> dict[str, Any]:
    title = f"{name} by step of {len(lines)} cell{'s' * (len(lines) != 1)}"
    drawn = line_figure(lines, title, size=(440, 260), kind="curves")
    return {"title": name, "svg": drawn.svg, "comment": drawn.comment, "window": window}


def _filters(board: Leaderboard, cells: list[CellResult]) -> list[dict[str, Any]]:
    """Every axis with at least two values among the cells that have a curve, and their status."""
    names = short_names(board.sweep.axes)
    found = []
    for axis, levels in board.sweep.axes.items():
        own = {cell.values.get(axis) for cell in cells}
        found.append((names[axis], [level for level in levels if level in own], axis))
    own = {cell.status for cell in cells}
    found.append(("status", [status for status in STATUSES if status in own], None))
    filters = []
    for name, levels, axis in found:
        if len(levels) > 1:
            codes = {level: n for n, level in enumerate(levels)}
            of = [codes.get(cell.status if axis is None else cell.values.get(axis, ""), -1) for cell in cells]
            counts = [of.count(n) for n in range(len(levels))]
            values = list(zip(levels, colours(len(levels)), counts, strict=True))
            filters.append({"name": name, "values": values, "codes": of, "axis": axis})
    return filters


def _line(
    board: Leaderboard,
    number: int,
    cell: CellResult,
    points: list[Point],
    filters: list[dict[str, Any]],
    painted: int | None,
) -> Line:
    levels = [filter_["codes"][number] for filter_ in filters]
    colour = "var(--series-1)"
    if painted is not None and levels[painted] >= 0:
        colour = filters[painted]["values"][levels[painted]][1]
    name = cell_label(cell, short_names(board.sweep.axes))
    complete = cell.status == "completed"
    return Line(
        name if complete else f"{name} ({cell.status})",
        points,
        colour=colour,
        kind=" ".join(["best"] * (cell.name == board.best) + ["partial"] * (not complete)),
        data={"cell": str(number), "levels": " ".join(map(str, levels))},
        complete=complete,
        broken=cell.status == "diverged",
    )


def colours(count: int) -> list[str]:
    """A CSS colour for each of so many values: the page's own, or steps between two where they run out."""
    if count <= _COLOURS:
        return [f"var(--series-{n + 1})" for n in range(count)]
    shares = [round(100 * n / (count - 1)) for n in range(count)]
    return [f"color-mix(in oklab, var(--series-2) {share}%, var(--series-1))" for share in shares]


def _losses(cell: CellResult, key: str) -> list[Point]:
    """A loss by step; of a cell that was evaluated once, at its end, the loss that run.json has."""
    found = points_of(cell.lines, key)
    if key == "eval_loss" and not found and cell.last_step is not None and math.isfinite(cell.metric(key)):
        return [(float(cell.last_step), cell.metric(key))]
    return found
