"""Whether a cell is worse than the best one by more than noise, and from what that is known.

Two tests, for two kinds of noise; both ask about one cell against the best, at 95 %, without a correction for
the number of cells, so that of 20 equal cells one is expected to be called worse by chance.

* With repeats: a two-sided t test on the difference of two cells, where every seed is a block (a randomized
  block design; Fisher 1935): the metric is fitted as an effect of the cell plus one of the seed, and what
  remains, pooled over all cells, is the noise. Repeats share their seeds, so that what a seed does to all
  cells alike (its held-out rows are the same anyway, its order of the rows, its draw of the adapter) is no
  noise. With two cells this is the paired t test. It takes the noise to be equal in all cells.
* Without repeats: a paired percentile bootstrap (Efron 1979) over the held-out rows of the difference of the
  token-weighted losses. It is about the choice of the held-out rows alone; another seed may differ by more.

Neither guesses: without repeats and without the same rows in both cells the answer is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


def by_seeds(groups: Sequence[Sequence[tuple[Any, float]]]) -> list[Verdict] | None:
    """Compare the first group of repeats with each other one; a repeat is its seed and its score.

    None where repeats do not tell what noise is: no two groups have two seeds in common.
    """
    from scipy.stats import t  # half a second, and only where there are repeats

    cells = [(number, seed) for number, group in enumerate(groups) for seed, _ in group]
    scores = np.array([score for group in groups for _, score in group])
    columns = {seed: len(groups) + n for n, seed in enumerate(dict.fromkeys(seed for _, seed in cells))}
    design = np.zeros((len(cells), len(groups) + len(columns)))
    for row, (number, seed) in enumerate(cells):
        design[row, [number, columns[seed]]] = 1
    moments = design.T @ design
    inverse = np.linalg.pinv(moments, hermitian=True)
    effects = inverse @ design.T @ scores
    freedom = len(cells) - int(np.linalg.matrix_rank(moments, hermitian=True))
    if not freedom:
        return None
    variance = float(((scores - design @ effects) ** 2).sum()) / freedom
    rounding = 1e-12 * float(np.abs(scores).max())
    verdicts = []
    for number in range(1, len(groups)):
        contrast = np.zeros(len(effects))
        contrast[[0, number]] = -1, 1
        if np.abs(moments @ inverse @ contrast - contrast).max() > 1e-6:
            verdicts.append(Verdict(None, "has no seed in common with the best"))
            continue
        gap = abs(float(contrast @ effects))
        least = t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance * (contrast @ inverse @ contrast))
        why = f"differs by {gap:.3g} at equal seeds; with these repeats a difference of {least:.3g} is noise"
        verdicts.append(Verdict(bool(gap <= least + rounding), why))
    return verdicts


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
