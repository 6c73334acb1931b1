"""Means over an evaluation that do not depend on how its rows are cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# What is no mean: the running count of tokens, and the ends of the range of rewards.
_REDUCED: dict[str, Callable[..., Any]] = {"num_tokens": max, "min_reward": min, "max_reward": max}


class WeightedMeans:
    """Means over batches, each batch with the weight of what its own mean was taken over.

    A batch's loss is a mean over its labelled tokens, its rewards one over its pairs: averaged plainly over
    batches, short ones and those with few labels would count for too much, and another
    ``per_device_eval_batch_size`` would give another result.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}

    def add(self, values: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        """Add the metrics of a batch; ``weights[""]`` is the weight of those that are not named there.

        Values and weights are numbers, or tensors of the same shape (a value for each cell of a pack).
        """
        for name, value in values.items():
            plain = name.removeprefix("eval_")
            if plain in _REDUCED:
                known = self._sums.get(name, value)
                self._sums[name] = _REDUCED[plain](known, value)
                continue
            weight = weights.get(plain, weights[""])
            if isinstance(weight, (int, float)) and not weight:
                continue  # a mean over nothing, which may be not a number
            self._add(name, value * weight, weight)

    def join(self, others: WeightedMeans) -> None:
        """Add what others were taken over."""
        for name, total in others._sums.items():
            if name in others._weights:
                self._add(name, total, others._weights[name])
            else:
                self.add({name: total}, {})

    def _add(self, name: str, total: Any, weight: Any) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def means(self) -> dict[str, Any]:
        """The means by name."""
        return {
            name: total / self._weights[name] if name in self._weights else total
            for name, total in self._sums.items()
        }


def joined(parts: Iterable[WeightedMeans]) -> WeightedMeans:
    """The means over all that these are taken over."""
    found = WeightedMeans()
    for part in parts:
        found.join(part)
    return found


def labelled(labels: Any) -> int:
    """The number of loss tokens of a batch of ``labels`` [rows, length]: each is predicted from its past."""
    from runner.data.labels import IGNORE

    return int((labels[..., 1:] != IGNORE).sum())
