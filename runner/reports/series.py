"""Curves of a run: a logged value by training step, from the lines of ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.reports.figures import Point
from runner.reports.number_format import to_number

_LARGEST = 1e30  # beyond it a loss is as good as infinite, and no axis can show it


def points_of(lines: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """One logged value as (step, value), NaN where it was not finite; a line without a step counts itself.

    The last line of a step wins, as a resumed run repeats steps. A loss of null is one that was not finite;
    any other null says that the value was not logged.
    """
    found: dict[float, float] = {}
    is_eval = key.startswith("eval_")
    for n, line in enumerate(lines, 1):
        if key not in line:
            continue
        evaluates = any(name.startswith("eval_") and line[name] is not None for name in line)
        is_loss = (
            key.endswith("loss") and evaluates == is_eval
        )  # train and eval values have lines of their own
        step = to_number(line.get("step", n))
        if math.isfinite(step) and (line[key] is not None or is_loss):
            value = to_number(line[key])
            found[step] = value if abs(value) < _LARGEST else math.nan
    return sorted(found.items())


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """A trailing mean over the finite values of ``window`` points; a point that is not finite stays so."""
    means = []
    for n, (x, y) in enumerate(points):
        part = [value for _, value in points[max(0, n + 1 - window) : n + 1] if math.isfinite(value)]
        means.append((x, math.fsum(part) / len(part) if math.isfinite(y) else math.nan))
    return means
