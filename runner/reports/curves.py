"""The loss curves of all cells over each other, and the boxes by which a reader chooses among them."""

from __future__ import annotations

import math
from typing import Any

from runner.reports.figures import to_number
from runner.reports.leaderboard import Leaderboard
from runner.reports.results import STATUSES, CellResult, cell_label, short_names
from runner.reports.sweep_figures import Curve, Point, colours, curve_figure, smooth

_SMOOTH = 40  # the window is this part of the logged steps


def curves_context(board: Leaderboard, foremost: str = "") -> dict[str, Any] | None:
    """Figures of training and held-out loss, and filters: a name, and (value, colour, cells) for each.

    Colours stand for the values of the axis ``foremost``, if it is given and there is a choice.
    """
    cells = [cell for cell in board.sweep.cells if _losses(cell, "loss") or _losses(cell, "eval_loss")]
    if not cells:
        return None
    filters = _filters(board, cells)
    axes = [filter_["axis"] for filter_ in filters]
    painted = axes.index(foremost) if foremost in axes else 0 if axes else None
    longest = max(len(_losses(cell, "loss")) for cell in cells)
    window = max(1, round(longest / _SMOOTH))
    figures = []
    for key, name in (("loss", "Training loss"), ("eval_loss", "Held-out loss")):
        lines = [(n, cell, _losses(cell, key)) for n, cell in enumerate(cells)]
        curves = [
            _curve(board, n, cell, smooth(points, window if key == "loss" else 1), filters, painted, key)
            for n, cell, points in lines
            if points
        ]
        if curves:
            ends = [curve.points[-1][1] for curve in curves if curve.complete]
            said = f", completed ones end between {min(ends):.4g} and {max(ends):.4g}" if ends else ""
            text = f"{name} by step of {len(curves)} cell{'s' * (len(curves) != 1)}{said}"
            svg = curve_figure(curves, text, f"frame-{key.replace('_', '-')}")
            figures.append({"title": name, "svg": svg, "window": window if key == "loss" else 1})
    return {"figures": figures, "filters": filters, "painted": painted, "cells": len(cells)}


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


def _curve(
    board: Leaderboard,
    number: int,
    cell: CellResult,
    points: list[Point],
    filters: list[dict[str, Any]],
    painted: int | None,
    key: str,
) -> Curve:
    levels = [filter_["codes"][number] for filter_ in filters]
    colour = "var(--series-1)"
    if painted is not None and levels[painted] >= 0:
        colour = filters[painted]["values"][levels[painted]][1]
    name = cell_label(cell, short_names(board.sweep.axes))
    if cell.status != "completed":
        name += f" ({cell.status})"
    return Curve(
        cell=number,
        name=name,
        points=points,
        levels=levels,
        colour=colour,
        best=cell.name == board.best,
        complete=cell.status == "completed",
        broken=cell.status == "diverged" and key == "loss",
    )


def _losses(cell: CellResult, key: str) -> list[Point]:
    """The finite losses by step, the last line of a step winning; the final held-out loss is one of them."""
    found: dict[float, float] = {}
    for line in cell.lines:
        step, loss = to_number(line.get("step")), to_number(line.get(key))
        if math.isfinite(step) and abs(loss) < 1e30:
            found[step] = loss
    if key == "eval_loss" and not found and cell.last_step is not None and math.isfinite(cell.metric(key)):
        found[float(cell.last_step)] = cell.metric(key)
    return sorted(found.items())
