"""A run beside its earlier record: what a repetition has that the first one had not, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of the metrics what depends on the machine and the hour.
_NOT_RESULTS = ("seconds", "_per_second", "_bytes", "_runtime", "pack_cells", "pack_cells_at_once")
_SAME = 1e-6  # relative difference of metrics that is rounding


@dataclass(frozen=True)
class Earlier:
    """The record (``run.json``) of a run with the same config, in ``folder``."""

    folder: Path
    record: Mapping[str, Any]

    def other_inputs(self, record: Mapping[str, Any]) -> list[str]:
        """A warning for each input of a run that is not the earlier run's."""
        return [
            f"{what} those of {self.folder}, whose config this run repeats" for what in self._inputs(record)
        ]

    def _inputs(self, record: Mapping[str, Any]) -> Iterator[str]:
        for split, name in (("train", "the training rows"), ("eval", "the held-out rows")):
            before, now = (_at(each, "data", split, "fingerprint") for each in (self.record, record))
            if before and before != now:
                yield f"{name} are not"
        before, now = (_at(each, "model", "identity") for each in (self.record, record))
        if before and now and before != now:
            yield f"{', '.join(key for key in before if before[key] != now.get(key))} of the base are not"
        before, now = (_digests(each) for each in (self.record, record))
        if before and before != now:
            yield "the weights of the adapters it starts from are not"

    def other_results(self, record: Mapping[str, Any]) -> list[str]:
        """A warning if the result of a run is not the earlier run's, with what else is not the same."""
        before, now = (_at(each, "digests", "adapter") for each in (self.record, record))
        if self.record.get("status") != "completed":
            return []
        if before and now:
            found = [] if before == now else ["the adapter has other weights"]
        else:
            found = list(_metrics(self.record.get("metrics") or {}, record.get("metrics") or {}))
        if not found:
            return []
        keys = ("code", "packages", "device", "precision")
        reasons = [key for key in keys if self.record.get(key) != record.get(key)]
        also = f"other {', '.join(reasons)}" if reasons else "code, packages and device are the same"
        repeated = f"another result than in {self.folder}, whose config this run repeats"
        return [f"{repeated}: {', '.join(found)}; {also}"]


@dataclass(frozen=True)
class Spent:
    """The seconds of the earlier starts of a run that was resumed, in all and by phase, as far as they were
    recorded: of a start that was killed up to its last record."""

    seconds: float = 0.0
    times: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, record: bytes) -> Spent:
        """Those of the ``run.json`` that a start has found; none without one, or of a run that has ended."""
        try:
            found = json.loads(record)
            return cls() if found["status"] == "completed" else cls(float(found["seconds"]), found["times"])
        except (ValueError, TypeError, KeyError):
            return cls()

    def added_to(self, seconds: float, times: Mapping[str, float]) -> dict[str, Any]:
        """The entries of ``run.json`` for a start that has taken so many seconds: those of all starts, and
        under ``earlier_starts`` the part that is not this one's."""
        phases = dict.fromkeys([*self.times, *times])
        found: dict[str, Any] = {
            "seconds": round(self.seconds + seconds, 3),
            "times": {name: round(self.times.get(name, 0) + times.get(name, 0), 3) for name in phases},
        }
        parts = {"seconds": self.seconds, "times": dict(self.times)}
        return found | ({"earlier_starts": parts} if self.seconds else {})


def _metrics(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, value in before.items():
        other = now.get(name)
        if name.endswith(_NOT_RESULTS) or not isinstance(value, (int, float)):
            continue
        if not isinstance(other, (int, float)) or not math.isclose(
            value, other, rel_tol=_SAME, abs_tol=_SAME
        ):
            yield f"{name} {other} for {value}"


def _digests(record: Mapping[str, Any]) -> list[Any]:
    entries = record.get("parents") or []
    return [e.get("digest") for e in entries if isinstance(e, dict) and e.get("kind") == "adapter"]


def _at(record: Mapping[str, Any], *keys: str) -> Any:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
