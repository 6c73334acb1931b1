"""From sources to token rows: clean, filter, split, render, mask, truncate; every removed row is counted."""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from runner.errors import Problem, Refused
from runner.formats import BadRow, Example
from runner.reader import SHOWN_PROBLEMS, Source, read_sources
from runner.settings import DataSettings
from runner.template import IGNORE, Encoded, Renderer

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1000  # rows tokenised at once
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")


@dataclass
class Split:
    """Training or held-out rows, ready to train on.

    ``counts`` holds what the reader found and removed, by reason; ``examples`` are the rows before rendering.
    """

    name: str
    sources: list[Source]
    examples: list[Example]
    rows: list[Encoded] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, after truncation and before padding."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """Labelled tokens of all rows."""
        return sum(row.trained_tokens for row in self.rows)

    @property
    def fingerprint(self) -> str:
        """Digest of what is really trained on: token ids and labels, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps([row.input_ids, row.labels]).encode())
        return f"sha256:{digest.hexdigest()}"

    def dataset(self) -> Dataset:
        """The rows as a ``datasets.Dataset`` with ``input_ids`` and ``labels``."""
        from datasets import Dataset

        return Dataset.from_dict(
            {"input_ids": [row.input_ids for row in self.rows], "labels": [row.labels for row in self.rows]}
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
    """The training rows, the held-out rows if there are any, and remarks for the user."""

    train: Split
    eval: Split | None
    notes: list[str] = field(default_factory=list)


def prepare(data: DataSettings, renderer: Renderer, max_length: int | None, seed: int) -> Data:
    """Read, clean, split, render and mask all rows of a run.

    Raises ``Refused`` for unusable rows, each named, and when no row has anything left to train on.
    """
    assert data.path is not None
    train_sources = read_sources(data.path, data, "data.path", seed)
    train = _filter("train", train_sources, data)
    held_out = None
    if data.eval_path:
        held_out = _filter("eval", read_sources(data.eval_path, data, "data.eval_path", seed), data)
    elif data.eval_split:
        held_out = _split_off(train, data.eval_split, seed)
    _limit(train, data.max_rows, seed)
    notes = []
    if held_out is not None:
        _limit(held_out, data.eval_max_rows, seed)
        notes += _overlap(train, held_out)
    for split in (train, held_out):
        if split is not None:
            _encode(split, data, renderer, max_length)
            notes += _remarks(split, max_length)
    return Data(train, held_out, notes)


def _filter(name: str, sources: list[Source], data: DataSettings) -> Split:
    split = Split(name, sources, [])
    seen: set[str] = set()
    for example in (example for source in sources for example in source.examples):
        split.counts["read"] += 1
        example = _clean(example) if data.clean else example
        identity = _identity(example)
        if not example.answer.strip():
            split.counts["empty answer"] += 1
        elif len(example.answer) < data.min_chars:
            split.counts["answer too short"] += 1
        elif data.deduplicate and identity in seen:
            split.counts["duplicate"] += 1
        else:
            split.counts["repeated"] += identity in seen
            split.examples.append(example)
        seen.add(identity)
    return split


def _clean(example: Example) -> Example:
    """Unicode NFC, no control or zero-width characters, no white space around a message."""

    def tidy(text: str) -> str:
        return _CONTROL.sub("", unicodedata.normalize("NFC", text)).strip()

    if example.text is not None:
        return replace(example, text=tidy(example.text))
    texts = ("content", "instruction", "input")
    messages = ({key: tidy(v) if key in texts else v for key, v in m.items()} for m in example.messages)
    return replace(example, messages=tuple(messages))


def _identity(example: Example) -> str:
    return example.text or json.dumps([(m["role"], m["content"]) for m in example.messages])


def _split_off(train: Split, share: float, seed: int) -> Split:
    count = max(1, round(len(train.examples) * share))
    chosen = set(random.Random(seed).sample(range(len(train.examples)), min(count, len(train.examples))))
    held_out = [example for index, example in enumerate(train.examples) if index in chosen]
    train.examples = [example for index, example in enumerate(train.examples) if index not in chosen]
    train.counts["held out"] = len(held_out)
    return Split("eval", train.sources, held_out, counts=Counter({"read": len(held_out)}))


def _limit(split: Split, rows: int | None, seed: int) -> None:
    if rows is not None and len(split.examples) > rows:
        kept = sorted(random.Random(seed).sample(range(len(split.examples)), rows))
        split.counts["over the row limit"] += len(split.examples) - rows
        split.examples = [split.examples[index] for index in kept]


def _overlap(train: Split, held_out: Split) -> list[str]:
    known = {_identity(example) for example in train.examples}
    shared = sum(_identity(example) in known for example in held_out.examples)
    held_out.counts["also in train"] = shared
    return [f"{shared} of {len(held_out.examples)} held-out rows are training rows too"] if shared else []


def _encode(split: Split, data: DataSettings, renderer: Renderer, max_length: int | None) -> None:
    for rows in _encoded(split, renderer):
        for row in rows:
            length = len(row.input_ids)
            if data.max_tokens is not None and length > data.max_tokens:
                split.counts["more than max_tokens"] += 1
                continue
            if max_length is not None and length > max_length:
                if data.overlong == "drop":
                    split.counts["longer than max_length"] += 1
                    continue
                split.counts["truncated"] += 1
                row = Encoded(row.source, row.input_ids[:max_length], row.labels[:max_length])
            # the first token is never predicted, so a label there trains nothing
            if not any(label != IGNORE for label in row.labels[1:]):
                split.counts["nothing left to train on"] += 1
                continue
            split.rows.append(row)
    if not split.rows:
        lost = ", ".join(f"{count} {reason}" for reason, count in split.counts.items() if count)
        raise Refused(
            Problem(
                f"data ({split.name})", f"no row is left to train on: {lost}", "raise trainer.max_length?"
            )
        )


def _encoded(split: Split, renderer: Renderer) -> Iterator[list[Encoded]]:
    problems: list[Problem] = []
    for start in range(0, len(split.examples), _BATCH):
        rendered = []
        for example in split.examples[start : start + _BATCH]:
            try:
                rows = renderer.render(example)
                split.counts["unrolled into turns"] += len(rows) - 1
                rendered += rows
            except BadRow as error:
                problems.append(Problem(f"{split.sources[0].path}, row {example.source}", str(error)))
        yield renderer.encode(rendered)
    if problems:
        raise Refused(problems[:SHOWN_PROBLEMS])


def _remarks(split: Split, max_length: int | None) -> list[str]:
    counts, notes = split.counts, []
    for reason in (
        "empty answer",
        "duplicate",
        "answer too short",
        "longer than max_length",
        "more than max_tokens",
    ):
        if counts[reason]:
            notes.append(f"{split.name}: {counts[reason]} of {counts['read']} rows dropped: {reason}")
    if counts["truncated"]:
        notes.append(f"{split.name}: {counts['truncated']} rows cut at max_length={max_length}")
    if counts["nothing left to train on"]:
        lost = counts["nothing left to train on"]
        notes.append(f"{split.name}: {lost} rows dropped: their prompt alone fills max_length={max_length}")
    if counts["unrolled into turns"]:
        more = counts["unrolled into turns"]
        notes.append(
            f"{split.name}: the template rewrites earlier turns; {more} rows added, one for each answer"
        )
    return notes
