"""The table of a benchmark: a column a side, a line a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.markup import escape

from runner.core import console
from runner.core.console import Table

Side = Mapping[str, Any]
_PARTS = ("data", "forward", "backward", "graph", "optimizer", "gaps")


def print_table(sides: Mapping[str, Side]) -> None:
    """Print the summaries of all sides, the first one's beside the others', and why a side failed."""
    table = Table()
    table.add_column("")
    for name in sides:
        table.add_column(escape(name), justify="right")
    for label, cells in lines(sides):
        table.add_row(label, *(escape(cell) for cell in cells))
    console.out.print()
    console.out.print(table)
    for name, side in sides.items():
        if "error" in side:
            console.out.print(f"[red]{escape(name)} failed[/]  {escape(side['error'])}")
        elif flags := side.get("flags"):
            text = ", ".join(f"{key}={value}" for key, value in flags.items())
            console.out.print(f"[dim]{escape(name)}: {escape(text)}[/]")


def lines(sides: Mapping[str, Side]) -> list[tuple[str, list[str]]]:
    """The table's lines as texts: a label and a cell for each side; a line that no side has is left out."""
    first = next(iter(sides.values()))
    own = first.get("tokens_per_second")
    found: list[tuple[str, Callable[[Side], str | None]]] = [
        ("tokens/s", lambda side: f"{side['tokens_per_second']:,.0f}"),
        ("  with padding", lambda side: f"{side['padded_tokens_per_second']:,.0f}"),
        ("  the first against it", lambda side: _ratio(own, side["tokens_per_second"])),
        ("ms a step, median", lambda side: f"{side['step_ms']:,.1f}"),
        ("  least to most", lambda side: f"{side['step_ms_least']:,.1f} to {side['step_ms_most']:,.1f}"),
        *((f"  {part}", lambda side, part=part: _part(side, part)) for part in _PARTS),
        ("MFU", lambda side: None if side["mfu"] is None else f"{side['mfu']:.1%}"),
        ("peak memory, reserved", lambda side: _gib(side.get("peak_reserved_bytes"))),
        ("  allocated", lambda side: _gib(side.get("peak_allocated_bytes"))),
        ("peak memory of the process", lambda side: _gib(side.get("peak_rss_bytes"))),
        ("start-up to a steady step", lambda side: f"{side['startup_seconds']:.1f} s"),
    ]
    shown = []
    for label, cell in found:
        cells = [None if "error" in side else cell(side) for side in sides.values()]
        if any(text is not None for text in cells):
            failed = ["failed" if "error" in side and not shown else "-" for side in sides.values()]
            shown.append((label, [text or blank for text, blank in zip(cells, failed, strict=True)]))
    return shown or [("tokens/s", ["failed"] * len(sides))]


def _ratio(own: float | None, other: float) -> str | None:
    return None if own is None else f"{own / other:.2f}x"


def _part(side: Side, part: str) -> str | None:
    value = side["split_ms"]["device"].get(part)
    return None if value is None else f"{value:,.1f}"


def _gib(size: int | None) -> str | None:
    return None if size is None else f"{size / 2**30:.2f} GiB"
