"""How sure a score is: percentile bootstrap intervals over rows (Efron 1979)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runner.evaluation.metrics import Measure

_AT_ONCE = 100  # resamples whose row counts are in memory together


@dataclass(frozen=True)
class Interval:
    """A value and the bounds between which it lies at the chosen confidence."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than noise."""
        return self.low > 0 or self.high < 0


def interval(measure: Measure, confidence: float, resamples: int, seed: int) -> Interval:
    """The interval of one score."""
    return _interval(measure.value, _resampled(measure, resamples, seed), confidence)


def difference(measure: Measure, other: Measure, confidence: float, resamples: int, seed: int) -> Interval:
    """The interval of ``measure`` less ``other``; both are scored on the same rows of each resample."""
    draws = _resampled(measure, resamples, seed) - _resampled(other, resamples, seed)
    return _interval(measure.value - other.value, draws, confidence)


def enough(rows: int, confidence: float) -> bool:
    """Whether so many rows can show a difference at all.

    Of two equal models one is better on every row with a chance of ``2 ** (1 - rows)`` (the sign test), and
    then every resample says so too.
    """
    return 2.0 ** (1 - rows) <= 1 - confidence


def _resampled(measure: Measure, resamples: int, seed: int) -> np.ndarray:
    """The score of each resample, (resamples,); a seed and a number of rows give the same resamples."""
    rng, rows = np.random.default_rng(seed), len(measure.statistics)
    scores: list[float] = []
    for start in range(0, resamples, _AT_ONCE):
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=min(_AT_ONCE, resamples - start))
        scores += [measure.score(sums) for sums in counts @ measure.statistics]
    return np.array(scores)


def _interval(value: float, draws: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
