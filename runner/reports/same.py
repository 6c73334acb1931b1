"""Cells that differ in their config and ended with the same weights: an axis that changed nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.reports.results import CellResult


def same_results(cells: Iterable[CellResult]) -> list[str]:
    """A remark for every adapter that several cells have, with the axes in which these differ."""
    by_digest: dict[str, list[CellResult]] = {}
    for cell in cells:
        digests = cell.record.get("digests")
        digest = digests.get("adapter") if isinstance(digests, dict) else None
        if cell.status == "completed" and digest:
            by_digest.setdefault(str(digest), []).append(cell)
    return [_remark(alike) for alike in by_digest.values() if len(alike) > 1]


def _remark(alike: list[CellResult]) -> str:
    first, *others = alike
    axes = [axis for axis in first.values if any(c.values.get(axis) != first.values[axis] for c in others)]
    names = f"{first.name} and {others[0].name}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
    return f"{names} ended with the same weights: {' and '.join(axes) or 'the seed'} made no difference"
