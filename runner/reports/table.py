"""The leaderboard in the terminal: narrow, and the same words without colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.segment import Segments

from runner.core import console
from runner.core.console import Table
from runner.core.metric_names import find_metric
from runner.reports.labels import label, short_names
from runner.reports.leaderboard import Leaderboard, Row, Spread
from runner.reports.number_format import format_value
from runner.reports.results import STATUSES

MOST_ROWS, WIDTH = 20, 100
_TONES = {"failed": "red", "diverged": "red", "dropped": "yellow", "preempted": "yellow"}


def score_value(value: float | None, name: str) -> str:
    """A score with four decimals, so that those of a column can be compared, or as a percentage."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 <= value <= 1 and find_metric(name).share:
        return f"{value * 100:.1f} %"
    return f"{value:.4f}".replace("-", "−") if 0.1 <= abs(value) < 10 else format_value(value)


def score_text(score: Spread | None, name: str) -> str:
    """``0.4312 ± 0.0021``, with the deviation only where there are repeats."""
    text = score_value(score.mean if score else None, name)
    if score is None or score.deviation is None:
        return text
    if "%" in text:
        return f"{text} ± {score.deviation * 100:.1f}"
    digits = len(text.partition(".")[2])
    return f"{text} ± " + (f"{score.deviation:.{digits}f}" if digits == 4 else format_value(score.deviation))


def print_leaderboard(board: Leaderboard) -> None:
    """Print the rows that have a result, then the cells that have none, and what the marks mean."""
    if not board.rows:
        console.out.print("the sweep has no cells")
        return
    others = _without_result(board)
    ranked = board.ranked[: MOST_ROWS - min(len(others), 5)]  # what went wrong is never pushed out
    left = MOST_ROWS - len(ranked)
    console.out.print()
    if ranked:
        _print(_ranking(board, ranked))
    if left and others:
        _print(_others(others[:left]))
    hidden = len(board.ranked) - len(ranked) + sum(len(names) for _, _, names in others[left:])
    if hidden:
        console.out.print(f"and {hidden} more in leaderboard.csv")
    repeats = max((score.n for row in board.ranked for score in row.scores.values()), default=1)
    if repeats > 1:
        console.out.print(f"[dim]mean ± standard deviation over up to {repeats} repeats[/]")
    if board.note:
        console.out.print(f"[dim]{escape(board.note)}[/]")
    if board.method:
        known = not board.method.startswith("unknown")
        text = f"≈ best, within noise of it: {board.method}" if known else f"noise is {board.method}"
        console.out.print(f"[dim]{escape(text)}[/]")
    if board.other_code:
        console.out.print(f"[dim]{escape(board.other_code)}[/]")


def _print(table: Table) -> None:
    """Print a table in the width of the terminal; where there is none, in ``WIDTH``, whatever it claims."""
    width = console.out.width if console.out.is_terminal else WIDTH
    console.out.print(Segments(console.out.render(table, console.out.options.update(width=width))), end="")


def _ranking(board: Leaderboard, rows: Sequence[Row]) -> Table:
    """The rows that have a result; a scale or size that all of them share is left to the CSV."""
    names = short_names(board.sweep.axes)
    columns: list[tuple[str, list[str]]] = [("", [str(row.rank) for row in rows])]
    columns += [(names[axis], [row.values.get(axis, "–") for row in rows]) for axis in names]
    facts = [
        ("scale", [format_value(row.scale) for row in rows]),
        ("trained", [compact(row.parameters) for row in rows]),
    ]
    facts = [(name, values) for name, values in facts if len(set(values)) > 1]
    columns += facts[:-1] if len(facts) > 1 else []
    for name in board.scores[:2]:
        columns.append((find_metric(name).label, [score_text(row.scores.get(name), name) for row in rows]))
    columns += facts[-1:]
    columns.append(("time", [_clock(row.seconds) for row in rows]))
    columns.append(("tokens/s", [_whole(row.tokens_per_second) for row in rows]))
    table = Table()
    headers = [_short(header, 24).replace("_", " ").split() for header, _ in columns]
    height = max(map(len, headers))
    for words in headers:
        text = escape("\n".join([""] * (height - max(len(words), 1)) + words))
        table.add_column(text, justify="right", max_width=24)
    table.add_column("")
    for number, row in enumerate(rows):
        cells = [escape(values[number].replace(" %", "%")) for _, values in columns]
        table.add_row(*cells, escape(_mark(board, row)), style="bold green" if row.rank == 1 else "")
    return table


def _mark(board: Leaderboard, row: Row) -> str:
    """Best, within noise of it, how many repeats it rests on if some are missing, made by other code."""
    marks = ["best"] if row.rank == 1 else []
    if row.noise and row.noise.within:
        marks.append("≈ best")
    elif row.noise and row.noise.within is None and not board.method.startswith("unknown"):
        marks.append("noise unknown")
    if row.scores[board.metric].n < len(row.cells):
        marks.append(f"{row.scores[board.metric].n} of {len(row.cells)}")
    if row.other_code:
        marks.append(row.other_code)
    return ", ".join(marks)


def _without_result(board: Leaderboard) -> list[tuple[str, str, list[str]]]:
    """Cells without a result as (status, when and why, labels), those with the same reason together."""
    names = short_names(board.sweep.axes)
    found: dict[tuple[str, str], list[str]] = {}
    for row in board.rows:
        for cell in row.cells:
            if cell.status != "completed" or not row.rank:
                why = cell.brief if cell.status != "completed" else row.reason
                found.setdefault((cell.status, why), []).append(label(cell.values, names) or cell.name)
    keys = sorted(found, key=lambda key: STATUSES.index(key[0]))
    return [(*key, found[key]) for key in keys]


def _others(found: Sequence[tuple[str, str, list[str]]]) -> Table:
    table = Table(show_header=False)
    for column in ("status", "count", "what"):
        table.add_column(justify="right" if column == "count" else "left")
    for status, why, cells in found:
        tone = _TONES.get(status, "dim")
        distinct = list(dict.fromkeys(cells))
        shown = "; ".join(distinct[:3]) + (f"; and {len(distinct) - 3} more" if len(distinct) > 3 else "")
        what = f"{_short(why, 160)}\n{shown}" if why else shown
        table.add_row(f"[{tone}]{status}[/]", str(len(cells)), escape(what))
    return table


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _clock(seconds: float | None) -> str:
    """Seconds as 5m47s."""
    if seconds is None or seconds < 0:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{seconds:.1f}s"


def compact(count: float | None) -> str:
    """A count of parameters as 4.88M."""
    if count is None:
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
