"""The scales of figures: which values an axis spans, and the round numbers on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.reports.number_format import format_value

_SQUASHED = 4.0  # times the range after the first tenth of the steps
_DECADES = 50.0  # highest value by lowest, from which an axis is logarithmic
_PAD = 0.06  # of the range, above and below


def y_limits(
    lines: Sequence[Sequence[tuple[float, float]]], may_log: bool = True
) -> tuple[float, float, bool] | None:
    """Lowest and highest value of a vertical axis, and whether it is logarithmic; None without a point.

    ``lines`` are finite points (x, y). All points are shown, on a logarithmic axis where their values span a
    factor of 50. Where the first tenth of the steps makes the range more than 4 times what the rest needs
    (a loss that falls from 11 to 2 in the first steps), the axis is logarithmic if that helps, or else it
    spans the values after the first tenth.
    """
    points = [point for line in lines for point in line]
    if not points:
        return None
    values = [y for _, y in points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    late = [y for x, y in points if x >= first + (last - first) / 10]
    low, high, bottom, top = min(values), max(values), min(late), max(late)
    may_log = may_log and low > 0
    if high - low <= _SQUASHED * (top - bottom) or top == bottom:
        log = may_log and high > _DECADES * low
    else:
        log = may_log and math.log(high / low) <= _SQUASHED * math.log(top / bottom)
        if not log:
            low, high = bottom, top
            log = may_log and high > _DECADES * low
    if log:
        pad = (high / low) ** (_PAD / 2)
        return low / pad, high * pad, True
    pad = (high - low) * _PAD or abs(high) * 0.05 or 1.0
    return low - pad, high + pad, False


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers between two bounds, at most about ``most`` of them."""
    if not (math.isfinite(high - low) and high > low):
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive bounds, with 2 and 5 times these where there are few.

    Bounds too near to each other for three of these have the round numbers of a linear axis.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [10.0**power * n for power in powers for n in factors if low <= 10.0**power * n <= high]
    return found if len(found) > 2 else ticks(low, high, 4)


def tick_labels(values: Sequence[float]) -> list[str]:
    """The labels of one linear axis, all with the same decimals or the same power of ten."""
    top = max(map(abs, values), default=0.0)
    if 0 < top < 1e-3:
        power = math.floor(math.log10(top))
        return [f"{value / 10.0**power:.3g}e−{-power}" if value else "0" for value in values]
    if top >= 10_000:
        return [format_value(value) for value in values]
    decimals = max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values), default=0)
    return [f"{value:,.{decimals}f}".replace("-", "−") for value in values]
