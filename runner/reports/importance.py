"""How much of the metric's variance each axis explains: a main-effects analysis of variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Effect:
    """One axis, or several that always change together: its share of the variance, from 0 to 1.

    ``by_chance`` is the share that as many values explain on average where the axis has no effect at all.
    """

    axes: tuple[str, ...]
    share: float
    by_chance: float


@dataclass(frozen=True)
class Importance:
    """The effects, largest first, and the share of the ``rest``; ``why_not`` if they cannot be estimated."""

    effects: list[Effect] = field(default_factory=list)
    rest: float = 0.0
    why_not: str = ""


def importance(values: Sequence[Mapping[str, str]], scores: Sequence[float]) -> Importance:
    """Take the variance of the scores of cells apart by the axes' ``values``.

    Every axis is a set of categories, without an order. The share of an axis is what the model of all main
    effects explains less what it explains without that axis (sums of squares of type II, Yates 1934), which
    in a full grid is the variance between its values. The rest is interactions of axes and noise.
    """
    target = np.array(scores, dtype=float)
    if len(target) < 3:
        return Importance(why_not="fewer than three cells have completed")
    total = float(((target - target.mean()) ** 2).sum())
    if total <= 1e-20 * max(1.0, float((target**2).sum())):
        return Importance(why_not="all cells score the same")
    factors = _factors(values)
    if not factors:
        return Importance(why_not="no axis has two values among the completed cells")
    whole, degrees = _residual(list(factors.values()), target)
    if degrees <= 0:
        return Importance(
            why_not="with one cell a value and no repeats, an effect cannot be separated from noise"
            if len(factors) == 1
            else "there are too few cells for so many values of the axes"
        )
    effects = []
    for axes in factors:
        without, left = _residual([other for name, other in factors.items() if name != axes], target)
        if left > degrees:
            share = max(0.0, without - whole) / total
            effects.append(Effect(axes, share, (left - degrees) / (len(target) - 1)))
        else:  # what the axis does is also done by others together
            return Importance(why_not=f"{' and '.join(axes)} cannot be separated from the other axes")
    effects.sort(key=lambda effect: -effect.share)
    return Importance(effects, whole / total)


def _factors(values: Sequence[Mapping[str, str]]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Codes of each axis that varies; axes that part the cells alike are one factor."""
    found: dict[tuple[int, ...], tuple[str, ...]] = {}
    for axis in dict.fromkeys(axis for cell in values for axis in cell):
        levels = {level: code for code, level in enumerate(dict.fromkeys(cell.get(axis) for cell in values))}
        codes = tuple(levels[cell.get(axis)] for cell in values)  # numbered by first appearance
        if len(levels) > 1:
            found[codes] = (*found.get(codes, ()), axis)
    return {axes: codes for codes, axes in found.items()}


def _residual(factors: Sequence[Sequence[int]], target: np.ndarray) -> tuple[float, int]:
    """Sum of squares that the main effects leave, and its degrees of freedom."""
    columns = [np.ones(len(target))]
    for codes in factors:
        columns += [np.equal(codes, code).astype(float) for code in range(1, max(codes) + 1)]
    design = np.stack(columns, axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(design, target - target.mean(), rcond=None)
    return float(((target - target.mean() - design @ fitted) ** 2).sum()), len(target) - int(rank)
