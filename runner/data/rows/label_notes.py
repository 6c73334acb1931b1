"""What the labels of the training rows are: classes with their counts, answers that were liked or not."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from typing import Any

from runner.data.rows.values import printable

_SHOWN = 20  # classes that are listed


def label_notes(labels: Counter[Any], kind: str) -> list[str]:
    """Warnings about the labels of the training rows, each with its number of rows."""
    if kind == "unpaired_preference":
        liked, other = labels[True], labels[False]
        if liked and other:
            return []
        return [f"train: all labels are alike: {liked:,} liked, {other:,} not liked; KTO contrasts the two"]
    return [_listed(labels), *_nearly_equal(labels)]


def _listed(labels: Counter[Any]) -> str:
    ordered = sorted(labels.items(), key=lambda item: (-item[1], str(item[0])))
    named = ", ".join(f"{printable(name)} ({count:,})" for name, count in ordered[:_SHOWN])
    more = f" and {len(ordered) - _SHOWN:,} more" if len(ordered) > _SHOWN else ""
    return f"train: {len(ordered):,} classes: {named}{more}"


def _nearly_equal(labels: Counter[Any]) -> list[str]:
    """Classes that differ in case, spaces, punctuation or in how a number is written."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(map(str, labels)):
        groups[plain_class(name)].append(name)
    alike = [" and ".join(map(repr, names)) for names in groups.values() if len(names) > 1]
    if not alike:
        return []
    more = f" and {len(alike) - _SHOWN:,} more" if len(alike) > _SHOWN else ""
    return [f"train: nearly equal classes, trained as different ones: {', '.join(alike[:_SHOWN])}{more}"]


def plain_class(name: str) -> str:
    """A class as nearly equal ones are written too: without case and punctuation, or as a number."""
    try:
        return repr(float(name))
    except ValueError:
        folded = unicodedata.normalize("NFKC", name).casefold()
        return re.sub(r"[\W_]+", "", folded) or folded
