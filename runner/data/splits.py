"""Training and held-out data as the trainer takes it, with what was counted on the way there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from runner.config.objective import SavedHead
from runner.core.errors import ConfigError, Issue
from runner.data.formats import Example
from runner.data.reader import Source
from runner.data.rows.label_notes import plain_class
from runner.data.sequences import Sequences

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Split:
    """Training or held-out examples and the token sequences made of them; both are memory-mapped.

    ``counts`` holds how many examples were read, and how many were dropped or changed, by reason.
    ``first_seen`` names file and line of the first example of each warning.
    """

    name: str
    sources: list[Source]
    examples: Sequence[Example]
    rows: Sequences
    counts: Counter[str] = field(default_factory=Counter)
    first_seen: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, after truncation and before padding."""
        return self.rows.totals.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.rows.totals.longest

    @property
    def trained_tokens(self) -> int:
        """Loss tokens of all sequences: those whose label is not masked."""
        return self.rows.totals.loss_tokens

    @property
    def fingerprint(self) -> str:
        """``sha256:HEX`` over token ids, labels and classes, in order: what is really trained on."""
        return self.rows.totals.fingerprint

    def dataset(self) -> Dataset:
        """The sequences with the columns that trainers take.

        ``input_ids`` and ``labels`` (token ids, -100 where masked); of pairs ``chosen_`` and ``rejected_`` of
        both; ``label`` of an example that has one.
        """
        return self.rows.dataset.remove_columns(
            "source", new_fingerprint=self.fingerprint.removeprefix("sha256:")
        )

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
    """The training split, the held-out split if there is one, and warnings for the user.

    ``overlap_issue`` is the config error of held-out examples that are all training examples, for a run that
    trains. ``cached`` says that an earlier run had prepared the same data.
    """

    train: Split
    eval: Split | None
    notes: list[str] = field(default_factory=list)
    overlap_issue: Issue | None = None
    cached: bool = False

    @property
    def splits(self) -> list[Split]:
        """Training, and held-out if there is one."""
        return [self.train] if self.eval is None else [self.train, self.eval]

    def check_held_out(self) -> None:
        """Raise ``ConfigError`` if a score on the held-out examples would say nothing about new ones."""
        if self.overlap_issue is not None:
            raise ConfigError(self.overlap_issue)


def number_classes(data: Data, saved: SavedHead | None = None) -> list[str]:
    """Replace each row's class by its number, and return the classes in that order.

    The order is that of the ``saved`` head, which is trained further, and may have classes that no row has;
    of a new one sorted, numbers by size. Raises ``ConfigError`` for fewer than two classes in the training
    split, and for rows of classes that the head does not get.
    """
    found = set(data.train.rows.classes())
    if len(found) < 2:
        raise ConfigError(Issue("data.path", f"the training rows have one class only: {[*found]}"))
    if saved is not None and (saved.named or found <= {*saved.classes}):
        classes, lacks = list(saved.classes), f"the head of {saved.where} does not have"
        other = "without adapter=" if saved.in_adapter else "on another model.path, without a head,"
        ways = [f"{other} a new one is trained for any classes"]
    else:
        classes = sorted(found, key=int) if all(map(str.isdecimal, found)) else sorted(found)
        lacks, ways = "no training row has", []
        data.notes += _unnamed(saved, classes)
    others = {split.name: {*split.rows.classes()}.difference(classes) for split in data.splits}
    if unknown := sorted(set[str]().union(*others.values())):
        where = ", ".join(name for name, found in others.items() if found)
        message = f"rows have classes that {lacks}: {', '.join(unknown)}"
        hint = [*_meant(unknown, classes), f"the classes are: {', '.join(classes)}", *ways]
        raise ConfigError(Issue(f"data ({where})", message, "; ".join(hint)))
    for split in data.splits:
        split.rows = split.rows.with_class_numbers(classes)
    return classes


def _meant(unknown: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Which of ``classes`` may be meant by others: those that are written nearly alike."""
    alike = {plain_class(name): name for name in classes}
    close = {name: next(iter(get_close_matches(name, classes, n=1)), None) for name in unknown}
    pairs = {name: alike.get(plain_class(name)) or close[name] for name in unknown}
    return [f"{name!r} may be {other!r}" for name, other in pairs.items() if other]


def _unnamed(saved: SavedHead | None, classes: Sequence[str]) -> list[str]:
    """What becomes of a saved head whose outputs have no names."""
    if saved is None:
        return []
    outputs = f"{saved.where} has a head of {len(saved.classes)} outputs without names"
    if len(saved.classes) != len(classes):
        return [f"{outputs}, and the rows {len(classes)} classes: a new head is drawn"]
    return [f"{outputs}, which are taken for these classes, in this order: {', '.join(classes)}"]
