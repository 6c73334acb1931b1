"""Training and held-out rows as the trainer takes them, with what was counted on the way there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.core.errors import ConfigError, Issue
from runner.data.formats import Example
from runner.data.reader import Source
from runner.data.token_rows import TokenRows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Split:
    """Training or held-out rows, ready to train on.

    ``counts`` holds what the reader found and removed, by reason; ``examples`` are the rows before rendering.
    ``firsts`` says where the first row stands of each reason that leaves the row in but deserves a look.
    Both rows and examples are on disk, and read as they are asked for.
    """

    name: str
    sources: list[Source]
    examples: Sequence[Example]
    rows: TokenRows
    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, after truncation and before padding."""
        return self.rows.totals.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.rows.totals.longest

    @property
    def trained_tokens(self) -> int:
        """Labelled tokens of all rows."""
        return self.rows.totals.trained_tokens

    @property
    def fingerprint(self) -> str:
        """Digest of what is really trained on: token ids, labels and classes, in order."""
        return self.rows.totals.fingerprint

    def dataset(self) -> Dataset:
        """The rows as a ``datasets.Dataset``, with the columns of ``TokenRows.dataset``."""
        return self.rows.dataset()

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
    ``cached`` says that an earlier run had prepared the same rows.
    """

    train: Split
    eval: Split | None
    notes: list[str] = field(default_factory=list)
    known: Issue | None = None
    cached: bool = False

    def check_held_out(self) -> None:
        """Raise ``ConfigError`` if a score on the held-out rows would say nothing about new rows."""
        if self.known is not None:
            raise ConfigError(self.known)


def number_classes(data: Data) -> list[str]:
    """Replace each row's class by its number, and return the classes in that order: sorted, numbers by size.

    Raises ``ConfigError`` for fewer than two classes in the training rows, or others in the held-out rows.
    """
    found = set(data.train.rows.classes())
    classes = sorted(found, key=int) if all(map(str.isdecimal, found)) else sorted(found)
    unknown = sorted(set(data.eval.rows.classes()) - found) if data.eval else []
    if len(classes) < 2:
        raise ConfigError(Issue("data.path", f"the training rows have one class only: {classes}"))
    if unknown:
        message = f"held-out rows have classes that no training row has: {', '.join(unknown)}"
        raise ConfigError(Issue("data (eval)", message, f"the classes are: {', '.join(classes)}"))
    for split in (data.train, data.eval):
        if split is not None:
            split.rows = split.rows.numbered(classes)
    return classes
