"""Training and held-out rows as the trainer takes them, with what was counted on the way there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from runner.errors import Problem, Refused
from runner.formats import Example
from runner.labels import Encoded
from runner.reader import Source

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Split:
    """Training or held-out rows, ready to train on.

    ``counts`` holds what the reader found and removed, by reason; ``examples`` are the rows before rendering.
    ``firsts`` says where the first row stands of each reason that leaves the row in but deserves a look.
    """

    name: str
    sources: list[Source]
    examples: list[Example]
    rows: list[Encoded] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, after truncation and before padding."""
        return sum(row.tokens for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max((len(side.input_ids) for row in self.rows for side in row.sides), default=0)

    @property
    def trained_tokens(self) -> int:
        """Labelled tokens of all rows."""
        return sum(row.trained_tokens for row in self.rows)

    @property
    def fingerprint(self) -> str:
        """Digest of what is really trained on: token ids, labels and classes, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            parts: list[Any] = [row.input_ids, row.labels]
            parts += [row.rejected.input_ids, row.rejected.labels] if row.rejected else []
            digest.update(json.dumps(parts + [row.label] * (row.label is not None)).encode())
        return f"sha256:{digest.hexdigest()}"

    def dataset(self) -> Dataset:
        """The rows as a ``datasets.Dataset``.

        ``input_ids`` and ``labels`` (token ids, -100 where not trained on); of pairs ``chosen_`` and
        ``rejected_`` of both; ``label`` of a row that has one.
        """
        from datasets import Dataset

        columns: dict[str, list[Any]] = {}
        for row in self.rows:
            chosen = "chosen_" if row.rejected else ""
            for prefix, side in ((chosen, row), ("rejected_", row.rejected)):
                if side is not None:
                    columns.setdefault(f"{prefix}input_ids", []).append(side.input_ids)
                    columns.setdefault(f"{prefix}labels", []).append(side.labels)
            if row.label is not None:
                columns.setdefault("label", []).append(row.label)
        return Dataset.from_dict(columns)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "rows": len(self.rows),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "fingerprint": self.fingerprint,
            "counts": dict(self.counts),
            "sources": [source.record() for source in self.sources],
        }


@dataclass
class Data:
    """The training rows, the held-out rows if there are any, and remarks for the user.

    ``known`` is the mistake of held-out rows that are all training rows, for a run that trains.
    """

    train: Split
    eval: Split | None
    notes: list[str] = field(default_factory=list)
    known: Problem | None = None

    def check_held_out(self) -> None:
        """Raise ``Refused`` if a score on the held-out rows would say nothing about new rows."""
        if self.known is not None:
            raise Refused(self.known)


def number_classes(data: Data) -> list[str]:
    """Replace each row's class by its number, and return the classes in that order: sorted, numbers by size.

    Raises ``Refused`` for fewer than two classes in the training rows, or others in the held-out rows.
    """
    found = {str(row.label) for row in data.train.rows}
    classes = sorted(found, key=int) if all(map(str.isdecimal, found)) else sorted(found)
    unknown = sorted({str(row.label) for row in data.eval.rows} - found) if data.eval else []
    if len(classes) < 2:
        raise Refused(Problem("data.path", f"the training rows have one class only: {classes}"))
    if unknown:
        message = f"held-out rows have classes that no training row has: {', '.join(unknown)}"
        raise Refused(Problem("data (eval)", message, f"the classes are: {', '.join(classes)}"))
    for split in (data.train, data.eval):
        if split is not None:
            split.rows = [replace(row, label=classes.index(str(row.label))) for row in split.rows]
    return classes
