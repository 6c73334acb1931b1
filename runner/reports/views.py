"""The leaderboard, heatmaps, parallel coordinates and importance of axes, as a sweep's report shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any
from urllib.parse import quote

from runner.core.metric_names import find_metric
from runner.reports.importance import importance
from runner.reports.labels import label, short_names
from runner.reports.leaderboard import Leaderboard, Row
from runner.reports.number_format import format_value
from runner.reports.sweep_figures import Strand, heatmap, parallel
from runner.reports.table import compact, score_text, score_value

TONES = {"completed": "good", "failed": "bad", "diverged": "bad", "dropped": "warn", "preempted": "warn"}
_MOST_TILES = 400


def board_view(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard: columns as (label, title), rows of (text, number to sort by)."""
    names = short_names(board.sweep.axes)
    columns = [("#", "Rank"), *((names[axis], axis) for axis in names)]
    columns += [("Scale", "Effective scale of the adapter: alpha / r, or alpha / √r with use_rslora")]
    columns += [(find_metric(name).title, name) for name in board.scores]
    columns += [("Behind", f"Difference of {board.metric} from the best row")]
    columns += [("Trained", "Trainable parameters"), ("Time", "Of a pack, the time of all its cells")]
    columns += [("Tokens/s", "Tokens per second of this cell alone")]
    rows = []
    for row in board.rows:
        cells: list[tuple[str, float | None]] = [(str(row.rank or ""), row.rank)]
        for axis, levels in board.sweep.axes.items():
            value = row.values.get(axis)
            number = levels.index(value) if value in levels else None
            cells.append(("–" if value is None else value, number))
        cells.append((format_value(row.scale), row.scale))
        for name in board.scores:
            score = row.scores.get(name)
            cells.append((score_text(score, name), score.mean if score else None))
        behind = _behind(board, row)
        cells += [
            ("" if not behind else f"{behind:+.2g}".replace("-", "−"), behind),
            (compact(row.parameters), row.parameters),
            (format_value(row.seconds, "seconds"), row.seconds),
            (
                "–" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
                row.tokens_per_second,
            ),
        ]
        rows.append({"cells": cells, "row": row, "status": _status(board, row), "links": _links(row)})
    texts = [{item["cells"][n][0] for item in rows} - {"", "–"} for n in range(len(columns))]
    kept = {"Rank", *names, board.metric}
    varies = [n for n, (_, key) in enumerate(columns) if key in kept or len(texts[n]) > 1]
    fixed = [(columns[n][0], *texts[n]) for n in range(len(columns)) if n not in varies and texts[n]]
    return {
        "columns": [columns[n] for n in varies],
        "rows": [item | {"cells": [item["cells"][n] for n in varies]} for item in rows],
        "fixed": fixed,
        "axes": len(names),
        "method": board.method,
        "other_code": board.other_code,
        "repeats": max((score.n for row in board.ranked for score in row.scores.values()), default=1),
        "metric": find_metric(board.metric).title,
        "higher": board.higher,
    }


def _behind(board: Leaderboard, row: Row) -> float | None:
    """How much a row's metric differs from that of the best row."""
    if not row.rank:
        return None
    return row.scores[board.metric].mean - board.rows[0].scores[board.metric].mean


def _status(board: Leaderboard, row: Row) -> tuple[str, str, str, str]:
    """Status of a row, its tone, a second line, and the numbers behind the verdict."""
    briefs = "; ".join(dict.fromkeys(cell.brief for cell in row.cells if cell.brief))
    if row.rank is None:
        tone = TONES.get(row.status, "") if row.status != "completed" else "warn"
        return row.status, tone, briefs or row.reason, row.reason
    n = row.scores[board.metric].n
    missing = f"{n} of {len(row.cells)} repeats" if n < len(row.cells) else ""
    below = ", ".join(filter(None, (missing, row.other_code)))
    if row.rank == 1:
        return "best", "good", below, row.reason
    noise = row.noise
    verdict = {True: "within noise", False: "", None: "noise unknown"}[noise.within] if noise else ""
    why = "; ".join(filter(None, (noise.why if noise else "", row.reason)))
    return verdict, "muted", below, why


def _links(row: Row) -> list[tuple[str, str]]:
    """The reports of the row's cells, by a path beside this page."""
    found = [cell for cell in row.cells if (cell.folder / "report.html").is_file()]
    several = len(row.cells) > 1
    return [
        (f"seed {cell.record.get('seed', n)}" if several else "report", f"{quote(cell.name)}/report.html")
        for n, cell in enumerate(found)
    ]


def heatmaps_view(board: Leaderboard) -> list[dict[str, Any]]:
    """One for each pair of axes, the pair with most values first; of a single axis, one line."""
    axes = {axis: levels for axis, levels in board.sweep.axes.items() if len(levels) > 1}
    if not axes or not board.ranked:
        return []
    order = sorted(axes, key=lambda axis: -len(axes[axis]))
    pairs = [tuple(sorted(pair, key=lambda axis: len(axes[axis]))) for pair in combinations(order, 2)]
    found = [_heatmap(board, *pair) for pair in pairs] or [_heatmap(board, "", order[0])]
    return [figure for figure in found if figure]


def _heatmap(board: Leaderboard, down: str, across: str) -> dict[str, Any] | None:
    rows, columns = board.sweep.axes.get(down, [""]), board.sweep.axes[across]
    if len(rows) * len(columns) > _MOST_TILES:
        return None
    means: dict[tuple[int, int], list[float]] = {}
    others: dict[tuple[int, int], list[str]] = {}
    for row in board.rows:
        level = row.values.get(across)
        first = row.values.get(down, "") if down else ""
        if level not in columns or first not in rows:
            continue
        spot = rows.index(first), columns.index(level)
        if row.rank:
            means.setdefault(spot, []).append(row.scores[board.metric].mean)
        else:
            others.setdefault(spot, []).append(row.status)
    values = {spot: math.fsum(found) / len(found) for spot, found in means.items()}
    if not values:
        return None
    low, high = min(values.values()), max(values.values())
    names = short_names(board.sweep.axes)
    found = {spot: _tile(board, spot, values.get(spot), means, others) for spot in {*means, *others}}
    strength = {}
    for spot, value in values.items():
        share = (value - low) / (high - low) if high > low else 0.5
        strength[spot] = share if board.higher else 1 - share
    best = (max if board.higher else min)(values, key=lambda spot: values[spot])
    label_down = names.get(down, "")
    title = f"{find_metric(board.metric).title} by {names[across]}" + (f" and {label_down}" if down else "")
    figure, width = heatmap(rows, columns, found, strength, best, (label_down, names[across]), title)
    several = max(map(len, means.values())) > 1
    return {"title": f"{label_down} × {names[across]}".removeprefix(" × "), "svg": figure, "width": width} | {
        "mean": several,
        "mixed": len({len(found) for found in means.values()}) > 1 or bool(others),
    }


def _tile(
    board: Leaderboard,
    spot: tuple[int, int],
    value: float | None,
    means: Mapping[tuple[int, int], list[float]],
    others: Mapping[tuple[int, int], list[str]],
) -> tuple[str, str]:
    """A tile's text, and in words what it is the mean of and what is missing."""
    missing = others.get(spot, [])
    absent = ", ".join(f"{missing.count(status)} {status}" for status in dict.fromkeys(missing))
    if value is None:
        return missing[0], absent
    text, n = score_value(value, board.metric), len(means[spot])
    tip = f"{find_metric(board.metric).title} {text}" + (f", mean of {n}" if n > 1 else "")
    return text, tip + (f"; {absent}" if absent else "")


def parallel_view(board: Leaderboard) -> dict[str, Any] | None:
    """Every group with a result as a line over the axes that vary; None where there is nothing to draw."""
    axes = {axis: levels for axis, levels in board.sweep.axes.items() if len(levels) > 1}
    if not axes or len(board.ranked) < 2:
        return None
    names = short_names(board.sweep.axes)
    strands = [
        Strand(
            label(row.values, names),
            [levels.index(row.values[axis]) if axis in row.values else None for axis, levels in axes.items()],
            row.scores[board.metric].mean,
        )
        for row in board.ranked
    ]
    shown = [(names[axis], levels) for axis, levels in axes.items()]
    metric = find_metric(board.metric).title
    title = f"{metric} of {len(strands)} combinations over {', '.join(name for name, _ in shown)}"
    figure, width = parallel(shown, strands, metric, board.higher, title)
    return {"svg": figure, "width": width, "metric": metric}


def importance_view(board: Leaderboard) -> dict[str, Any] | None:
    """Bars as (axis, share, text), the last for what is left over, and the axes, the largest share first."""
    if not board.sweep.axes or not board.ranked:
        return None
    cells = [
        cell for row in board.ranked for cell in row.completed if math.isfinite(cell.metric(board.metric))
    ]
    found = importance([cell.values for cell in cells], [cell.metric(board.metric) for cell in cells])
    names = short_names(board.sweep.axes)
    bars = [
        (
            " with ".join(names[axis] for axis in effect.axes),
            effect.share,
            f"{effect.share * 100:.0f} %, by chance {effect.by_chance * 100:.0f} %",
        )
        for effect in found.effects
    ]
    if bars:
        bars.append(("interactions and noise", found.rest, f"{found.rest * 100:.0f} %"))
    axes = [axis for effect in found.effects for axis in effect.axes]
    uneven = bool(bars) and abs(sum(share for _, share, _ in bars) - 1) > 0.005
    facts = {"bars": bars, "why_not": found.why_not, "cells": len(cells), "axes": axes}
    return facts | {"uneven": uneven}
