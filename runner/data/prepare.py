"""From files to token sequences: read, clean, filter, split, render, mask, truncate; drops are counted.

Examples are written to disk as they are read, and from there, chosen by number, encoded into another file:
what is in memory is a few numbers a row. ``runner.data.store`` keeps the result for the next run of the data.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.config.settings import DataSettings
from runner.core.errors import ConfigError, Issue
from runner.data.clean import DROP_REASONS
from runner.data.encode import Encoder, encode_split
from runner.data.example_store import Examples, first_equal
from runner.data.formats import Example, Kind, unpaired
from runner.data.overlap import contradictions, overlap
from runner.data.reader import Source, read_sources
from runner.data.rows.label_notes import label_notes
from runner.data.rows.near_duplicates import check_installed, near_duplicates
from runner.data.splits import Data, Split
from runner.data.store import data_key, examples_file, load_or_make, sequences_file, temporary_folder
from runner.data.template import Renderer

__all__ = ["Data", "Split", "prepare"]


@dataclass
class _Selection:
    """Examples chosen for a split, where they come from, and how many were not chosen, by reason."""

    name: str
    sources: list[Source]
    examples: Examples
    counts: Counter[str]


def prepare(
    data: DataSettings, renderer: Renderer, max_length: int | None, seed: int, kind: Kind = "completion"
) -> Data:
    """Read, clean, split, render and mask all rows of a run, or find them as an earlier run prepared them.

    ``kind`` is what the recipe learns from. Raises ``ConfigError`` for unusable rows, each named, and when
    no row is left to train on.
    """

    def make(folder: Path) -> Data:
        made = _prepared(folder, data, Encoder.of(data, renderer, max_length, kind), seed)
        if data_key(data, renderer, max_length, seed, kind) != key:
            raise ConfigError(Issue("data.path", "its files changed while they were read", "start again"))
        return made

    key = data_key(data, renderer, max_length, seed, kind)
    return load_or_make(key, data.cache, make)


def _prepared(folder: Path, data: DataSettings, encoder: Encoder, seed: int) -> Data:
    """Write examples and sequences of all splits into a folder."""
    reading = folder / "read"
    reading.mkdir()
    train, held_out = _select(data, encoder.kind, seed, reading)
    sources = [*train.sources, *(held_out.sources if held_out is not None and data.eval_path else ())]
    notes, issue = [warning for source in sources for warning in source.warnings], None
    if held_out is not None:
        shared = overlap(train.examples, held_out.examples)
        held_out.counts["also in train"], issue = shared.rows, shared.issue
        notes += shared.notes
    selections = [train] if held_out is None else [train, held_out]
    splits = [_encoded(selection, folder, encoder) for selection in selections]
    for file in reading.iterdir():
        file.unlink()
    reading.rmdir()
    notes += [note for split in splits for note in _notes(split, encoder.max_length)]
    if "label" in splits[0].rows.dataset.column_names:
        notes += label_notes(splits[0].rows.labels(), encoder.kind)
    if encoder.kind != "completion":
        notes += [note for split in splits for note in contradictions(split.name, split.examples)]
    return Data(splits[0], splits[1] if held_out is not None else None, notes, issue)


@contextmanager
def training_examples(data: DataSettings, seed: int) -> Iterator[tuple[list[Source], Examples]]:
    """The examples that a run with this section and ``seed`` trains on, and where they come from.

    They are there as long as the context is. Raises ``ConfigError`` for unusable rows.
    """
    with temporary_folder() as folder:
        train, _ = _select(data, "completion", seed, folder)
        yield train.sources, train.examples


def _select(data: DataSettings, kind: Kind, seed: int, folder: Path) -> tuple[_Selection, _Selection | None]:
    """The examples to train on, and those that are held out, if any are; files are written to ``folder``."""
    if data.deduplicate == "near":
        check_installed()
    sources = _read(data, kind, folder)
    train, held_out = _filter("train", sources["data.path"], data), None
    if data.eval_path:
        held_out = _filter("eval", sources["data.eval_path"], data)
    elif data.eval_split:
        held_out = _split_off(train, data.eval_split, data.split_seed)
    _limit(train, data.max_rows, seed)
    if held_out is not None:
        _limit(held_out, data.eval_max_rows, data.split_seed)
    return train, held_out


def _read(data: DataSettings, kind: Kind, folder: Path) -> dict[str, list[Source]]:
    """All sources by key; the issues of training and held-out files are reported together."""
    sources: dict[str, list[Source]] = {}
    issues: list[Issue] = []
    for key, given in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        try:
            sources[key] = read_sources(given, data, key, data.split_seed, folder, kind) if given else []
        except ConfigError as error:
            issues += error.issues
    if issues:
        raise ConfigError(issues)
    return sources


def _filter(name: str, sources: list[Source], data: DataSettings) -> _Selection:
    """The examples of all sources, without those that have a reason to be dropped."""
    examples = Examples.concatenated([source.examples for source in sources if source.examples is not None])
    drop_reasons, rows = examples.drop_reasons, examples.indices
    # a row that its source's weight repeats has the same number, and is no duplicate of itself
    duplicate = rows[first_equal(examples.identities)] != rows
    kept = drop_reasons == 0
    counts = Counter({"read": len(rows)})
    counts.update({name: _count(drop_reasons == number) for number, name in enumerate(DROP_REASONS) if name})
    reason = {False: "repeated", "prompt": "duplicate prompt"}.get(data.deduplicate, "duplicate")
    counts[reason] = _count(kept & duplicate)
    if data.deduplicate:
        kept &= ~duplicate
    if data.deduplicate == "near":
        near = np.zeros(len(rows), bool)
        first, chosen = np.unique(rows[kept], return_inverse=True)  # rows that a weight repeats stay together
        texts = (" ".join(_words(example)) for example in examples.of_rows(first))
        near[kept] = near_duplicates(texts, data.near_similarity)[chosen]
        counts["near duplicate"] = _count(near)
        kept &= ~near
    return _Selection(name, sources, examples.take(kept), counts)


def _words(example: Example) -> list[str]:
    """All the words of an example, in order."""
    messages = (*example.messages, *example.rejected)
    return [example.text or "", *(message["content"] for message in messages)]


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _split_off(train: _Selection, share: float, seed: int) -> _Selection:
    """Move about ``share`` of the examples, at least one, out of training.

    Equal examples are moved together, and held out once: ``train_test_split`` would leave some in training.
    """
    heads, group = np.unique(first_equal(train.examples.identities), return_inverse=True)
    order = array("q", range(len(heads)))
    random.Random(seed).shuffle(order)
    moved_with = np.cumsum(np.bincount(group, minlength=len(heads))[order])
    wanted = max(1, round(len(train.examples) * share))
    chosen = np.zeros(len(heads), bool)
    chosen[order[: int(np.searchsorted(moved_with, wanted)) + 1]] = True
    moved, held_out = chosen[group], train.examples.take(heads[chosen])
    train.examples = train.examples.take(~moved)
    train.counts["held out"] = _count(moved)
    counts = Counter({"read": _count(moved), "duplicate": _count(moved) - len(held_out)})
    return _Selection("eval", train.sources, held_out, +counts)


def _limit(selection: _Selection, rows: int | None, seed: int) -> None:
    """Keep a seeded choice of as many ``rows``."""
    if rows is not None and len(selection.examples) > rows:
        kept = sorted(random.Random(seed).sample(range(len(selection.examples)), rows))
        selection.counts["over the row limit"] += len(selection.examples) - rows
        selection.examples = selection.examples.take(np.array(kept, np.int64))


def _encoded(selection: _Selection, folder: Path, encoder: Encoder) -> Split:
    """Write the examples and the sequences of a split. Raises ``ConfigError`` when none is left."""
    name = selection.name
    # only now, so that both answers of a pair are in the same split
    parts = unpaired if encoder.kind == "unpaired_preference" else None
    examples = selection.examples.save(examples_file(folder, name), parts)
    encoded = encode_split(examples, encoder, sequences_file(folder, name))
    counts = +(selection.counts + encoded.counts)  # without the reasons that met no row
    if not len(encoded.rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        message = f"no row is left to train on: {reasons}"
        raise ConfigError(Issue(f"data ({name})", message, _remedy(counts)))
    return Split(name, selection.sources, examples, encoded.rows, counts, encoded.first_seen)


def _remedy(counts: Counter[str]) -> str:
    """What to change when no row is left, by what dropped most of them."""
    remedies = {
        "all labels masked": "raise trainer.max_length",
        "cut to equal answers": "raise trainer.max_length",
        "chosen equals rejected": "give pairs of two different answers",
        "alike once rendered": "the template leaves out what they differ in; another one: template=chatml",
        "answer not written by the template": "choose a template that writes tool calls",
        "rejected by the template": "another template: template=chatml",
        "longer than max_length": "raise trainer.max_length, or data.overlong=truncate",
        "more than max_tokens": "raise data.max_tokens",
        "answer too short": "lower data.min_chars",
        "masked by its weight of 0": "their weight, loss or train says that none of them is trained",
        "empty answer": "is data.columns naming the right columns?",
        "held out": "give more rows, or data.eval_path instead of data.eval_split",
    }
    return remedies[max(remedies, key=lambda reason: counts[reason])]


_DROPPED = (
    "empty answer",
    "chosen equals rejected",
    "alike once rendered",
    "answer not written by the template",
    "duplicate",
    "duplicate prompt",
    "near duplicate",
    "answer too short",
    "masked by its weight of 0",
    "longer than max_length",
    "more than max_tokens",
    "over the row limit",
)


def _notes(split: Split, max_length: int | None) -> list[str]:
    """Warnings about what was dropped or changed."""
    counts, name = split.counts, split.name
    notes = [
        f"{name}: {counts[reason]} of {counts['read']} rows dropped: {reason}"
        for reason in _DROPPED
        if counts[reason]
    ]
    notes += [
        f"{name}: {counts[reason]} {text}"
        for reason, text in (
            ("repeated", "rows repeat earlier ones; data.deduplicate=true drops them"),
            ("cut to equal answers", f"pairs dropped: alike up to max_length={max_length}"),
            ("truncated", f"rows cut at max_length={max_length}"),
            ("all labels masked", f"rows dropped: their prompt alone fills max_length={max_length}"),
            (
                "unrolled into turns",
                "rows added, one for each answer: later turns change the text or tokens of earlier ones",
            ),
        )
        if counts[reason]
    ]
    return notes + [
        f"{name}: {counts[warning]} rows with {warning}, {where} first"
        for warning, where in split.first_seen.items()
    ]
