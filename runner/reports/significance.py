"""Whether a cell is worse than the best one by more than noise, and from what that is known.

Two tests, for two kinds of noise; both ask about one cell against the best, at 95 %, without a correction for
the number of cells, so that of 20 equal cells one is expected to be called worse by chance.

* With repeats: Fisher's least significant difference (Fisher 1935), a two-sided t test on the difference of
  two means whose variance is pooled over every cell that has repeats. It is about the noise of training: the
  seed of the adapter, the order of the rows. It takes that noise to be equal in all cells.
* Without repeats: a paired percentile bootstrap (Efron 1979) over the held-out rows of the difference of the
  token-weighted losses. It is about the choice of the held-out rows alone; another seed may differ by more.

Neither guesses: without repeats and without the same rows in both cells the answer is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.evaluation.bootstrap import enough, interval
from runner.evaluation.metrics import ratio
from runner.reports.number_format import to_number
from runner.reports.results import read_lines

CONFIDENCE, RESAMPLES = 0.95, 1000

Rows = dict[int, tuple[float, float]]  # by index: summed loss in nats, tokens


@dataclass(frozen=True)
class Verdict:
    """``within`` noise of the best, not, or None for unknown; ``why`` says from what, or what was missing."""

    within: bool | None
    why: str


@dataclass(frozen=True)
class Pooled:
    """Variance within cells, pooled over ``cells`` of them, with its degrees of freedom."""

    variance: float
    freedom: int
    cells: int


def pool(groups: Sequence[Sequence[float]]) -> Pooled | None:
    """The pooled variance of groups of repeats; None when no group has two."""
    repeated = [group for group in groups if len(group) > 1]
    if not repeated:
        return None
    squares = sum(sum((value - math.fsum(group) / len(group)) ** 2 for value in group) for group in repeated)
    freedom = sum(len(group) - 1 for group in repeated)
    return Pooled(squares / freedom, freedom, len(repeated))


def by_repeats(best: Sequence[float], other: Sequence[float], pooled: Pooled) -> Verdict:
    """Compare two means by the pooled spread; either group may have a single value."""
    from scipy.stats import t  # half a second, and only where there are repeats

    means = math.fsum(best) / len(best), math.fsum(other) / len(other)
    gap = abs(means[0] - means[1])
    least = t.ppf((1 + CONFIDENCE) / 2, pooled.freedom) * math.sqrt(
        pooled.variance * (1 / len(best) + 1 / len(other))
    )
    rounding = 1e-12 * max(map(abs, means))
    why = f"differs by {gap:.3g}; with these repeats a difference of {least:.3g} is noise"
    return Verdict(bool(gap <= least + rounding), why)


def by_rows(best: Rows | None, other: Rows | None) -> Verdict:
    """Compare two cells by the loss of each held-out row, as ``row_losses`` reads them."""
    if best is None or other is None:
        return Verdict(None, "the loss of single held-out rows is not known")
    if best.keys() != other.keys() or any(best[index][1] != other[index][1] for index in best):
        return Verdict(None, "the held-out rows are not the same")
    if not enough(len(best), CONFIDENCE):
        return Verdict(None, f"only {len(best)} held-out row{'s' * (len(best) != 1)}")
    # both losses are over the same tokens, so that their difference is one ratio of sums
    rows = [(other[index][0] - best[index][0], best[index][1]) for index in best]
    gap = interval(ratio("difference", rows), CONFIDENCE, RESAMPLES, seed=0)
    why = f"differs by {gap.value:.3g}, {CONFIDENCE:.0%} interval {gap.low:.3g} to {gap.high:.3g}"
    return Verdict(not gap.excludes_zero, why)


def row_losses(folder: Path) -> Rows | None:
    """Loss and tokens of each held-out row of a run folder; None when that is not known of every row."""
    lines = read_lines(folder / "held_out.jsonl")
    rows = {
        line["index"]: (to_number(line.get("loss")), to_number(line.get("tokens")))
        for line in lines
        if isinstance(line.get("index"), int)
    }
    whole = all(math.isfinite(loss) and tokens >= 0 for loss, tokens in rows.values())
    total = sum(tokens for _, tokens in rows.values())
    return rows if whole and len(rows) == len(lines) and 0 < total < math.inf else None
