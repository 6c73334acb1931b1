"""Rows of a leaderboard that tie: by which further metrics they are ordered, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from runner.core.metric_names import find_metric
from runner.reports.number_format import format_value

Means = Mapping[str, float | None]  # of a row by metric, the deciding one first; None where it has none


def order(means: Means) -> tuple[float, ...]:
    """By which rows are sorted, the best first: a metric counts where those before it are equal."""
    return tuple(
        math.inf if mean is None else -mean if find_metric(name).higher else mean
        for name, mean in means.items()
    )


def tie_note(ranked: Sequence[Means], what: str) -> str:
    """What is said of sorted rows whose first one is not alone at its value of the deciding metric.

    ``what`` the rows are, in the plural. Empty where it is alone.
    """
    left, said, by = list(ranked), "", ""
    for name, mean in ranked[0].items() if ranked else ():
        before = len(left)
        left = [means for means in left if means[name] == mean]
        metric = find_metric(name)
        if not said and len(left) > 1:
            said = f"{len(left)} {what} tie at {metric.label} {format_value(mean, name)}"
        elif said and len(left) < before:
            better = "highest" if metric.higher else "lowest"
            by += f"{', then' if by else ': of these'} the {better} {metric.label}"
        if len(left) == 1:
            break
    if not said or len(left) == 1:
        return said and f"{said}{by} decides"
    return f"{said}{by and f'{by} decides, in which {len(left)} tie, too'}: the first is named best"
