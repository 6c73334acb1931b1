"""From what a side has measured to the numbers of the table and of ``benchmark.json``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

Side = Mapping[str, Any]  # what the meter has measured, or ``error`` with the reason why there is nothing


def summary(side: Side, matmul_rate: float) -> dict[str, Any]:
    """The figures of a side: a rate is all tokens over all seconds of its measured steps, a step the median.

    ``mfu`` is the share of ``matmul_rate`` (operations a second) that the step's useful ones make.
    """
    steps: list[float] = side["step_seconds"]
    total = sum(steps)
    flops: list[float | None] = side["flops"]
    counted = [value for value in flops if value is not None]
    return {
        "tokens_per_second": sum(side["tokens"]) / total,
        "padded_tokens_per_second": sum(side["padded_tokens"]) / total,
        "step_ms": 1000 * statistics.median(steps),
        "step_ms_least": 1000 * min(steps),
        "step_ms_most": 1000 * max(steps),
        "mfu": sum(counted) / total / matmul_rate if len(counted) == len(flops) else None,
    }


def summarised(sides: Mapping[str, Side]) -> dict[str, dict[str, Any]]:
    """All sides with their figures in front; MFU against the best product rate that any side has measured."""
    rates = [side["matmul_flops_per_second"] for side in sides.values() if "error" not in side]
    return {
        name: dict(side) if "error" in side else {**summary(side, max(rates)), **side}
        for name, side in sides.items()
    }
