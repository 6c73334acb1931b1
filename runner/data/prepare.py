"""From sources to token rows: clean, filter, split, render, mask, truncate; every removed row is counted.

Rows are read into a file and from there, chosen by number, rendered and tokenised into another: what is in
memory is a few numbers a row. The result is kept for the next run of the same rows
(``runner.data.row_cache``).
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from runner.config.settings import DataSettings
from runner.core.errors import ConfigError, Issue
from runner.data import row_cache
from runner.data.clean import DROP_REASONS
from runner.data.formats import Example, Kind, unpaired
from runner.data.labels import Encoded, Rendered
from runner.data.messages import BadRow
from runner.data.overlap import overlap
from runner.data.reader import Mistakes, Source, read_sources
from runner.data.splits import Data, Split
from runner.data.spool import Examples, Spool, first_equal, joined
from runner.data.template import Renderer
from runner.data.token_rows import Totals, write_rows

__all__ = ["Data", "Split", "prepare"]

_BATCH, _BATCH_BYTES = 1000, 4 * 2**20  # rows tokenised at once, and the size of their examples


@dataclass
class Draft:
    """A split while it is made; the parts are those of ``Split``."""

    name: str
    sources: list[Source]
    examples: Examples
    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)


def prepare(
    data: DataSettings, renderer: Renderer, max_length: int | None, seed: int, kind: Kind = "answers"
) -> Data:
    """Read, clean, split, render and mask all rows of a run, or find them as an earlier run left them.

    ``kind`` is what the recipe learns from. Raises ``ConfigError`` for unusable rows, each named, and when
    no row has anything left to train on.
    """

    def make(folder: Path) -> None:
        row_cache.seal(folder, *_made(folder, data, renderer, max_length, seed, kind))
        if row_cache.key(data, renderer, max_length, seed, kind) != key:
            raise ConfigError(Issue("data.path", "its files changed while they were read", "start again"))

    key = row_cache.key(data, renderer, max_length, seed, kind)
    return row_cache.prepared(key, data.cache, make)


def _made(
    folder: Path, data: DataSettings, renderer: Renderer, max_length: int | None, seed: int, kind: Kind
) -> tuple[list[Draft], list[str], Issue | None]:
    """Write all rows of a run into a folder; return the splits, remarks, and ``Data.known``."""
    sources = _read(data, seed, kind)
    train = _filter("train", sources["data.path"], data)
    held_out = known = None
    if data.eval_path:
        held_out = _filter("eval", sources["data.eval_path"], data)
    elif data.eval_split:
        held_out = _split_off(train, data.eval_split, seed)
    _limit(train, data.max_rows, seed)
    notes = [remark for read in sources.values() for source in read for remark in source.remarks]
    if held_out is not None:
        _limit(held_out, data.eval_max_rows, seed)
        shared = overlap(train.examples, held_out.examples)
        held_out.counts["also in train"], known = shared.rows, shared.issue
        notes += shared.notes
    drafts = [train, held_out] if held_out is not None else [train]
    for draft in drafts:
        if kind == "feedback":  # only now, so that both answers of a pair are on the same side of the split
            draft.examples = _unpaired(draft.examples)
        _encode(draft, folder, data, renderer, max_length, kind)
        draft.counts = +draft.counts  # without the reasons that met no row
        notes += _remarks(draft, max_length)
    return drafts, notes, known


def _read(data: DataSettings, seed: int, kind: Kind) -> dict[str, list[Source]]:
    """All sources by key; the mistakes of training and held-out files are reported together."""
    sources: dict[str, list[Source]] = {}
    issues: list[Issue] = []
    for key, given in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        try:
            sources[key] = read_sources(given, data, key, seed, kind) if given else []
        except ConfigError as error:
            issues += error.issues
    if issues:
        raise ConfigError(issues)
    return sources


def _filter(name: str, sources: list[Source], data: DataSettings) -> Draft:
    examples = joined(source.examples for source in sources if source.examples is not None)
    drop_reasons, rows = examples.drop_reasons, examples.numbers
    # a row that its source's weight repeats has the same number, and is no duplicate of itself
    duplicate = rows[first_equal(examples.identities)] != rows
    kept = drop_reasons == 0
    counts = Counter({"read": len(rows)})
    counts.update({name: _count(drop_reasons == number) for number, name in enumerate(DROP_REASONS) if name})
    counts["duplicate" if data.deduplicate else "repeated"] = _count(kept & duplicate)
    if data.deduplicate:
        kept &= ~duplicate
    return Draft(name, sources, examples.take(kept), counts)


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _split_off(train: Draft, share: float, seed: int) -> Draft:
    """Move about ``share`` of the rows, at least one, out of training; equal rows go together, and once."""
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
    return Draft("eval", train.sources, held_out, +counts)


def _limit(draft: Draft, rows: int | None, seed: int) -> None:
    if rows is not None and len(draft.examples) > rows:
        kept = sorted(random.Random(seed).sample(range(len(draft.examples)), rows))
        draft.counts["over the row limit"] += len(draft.examples) - rows
        draft.examples = draft.examples.take(np.array(kept, np.int64))


def _unpaired(examples: Examples) -> Examples:
    parts = Spool()
    for example in examples:
        for part in unpaired(example):
            parts.add(part)
    return parts.since(0)


def _encode(
    draft: Draft, folder: Path, data: DataSettings, renderer: Renderer, max_length: int | None, kind: Kind
) -> None:
    """Write the examples and the rows of a split."""
    with row_cache.examples_file(folder, draft.name).open("wb") as file:
        file.writelines(draft.examples.lines())
    rows = _kept(draft, _encoded(draft, renderer), data, max_length)
    draft.totals = write_rows(row_cache.rows_file(folder, draft.name), rows, kind)
    if not draft.totals.rows:
        lost = ", ".join(f"{count} {reason}" for reason, count in draft.counts.items() if count)
        raise ConfigError(
            Issue(f"data ({draft.name})", f"no row is left to train on: {lost}", _remedy(draft))
        )


def _kept(
    draft: Draft, rows: Iterator[Encoded], data: DataSettings, max_length: int | None
) -> Iterator[Encoded]:
    """The rows that have the right length and something to train on, cut where they are too long."""
    for row in rows:
        sides = row.sides
        length = max(len(side.input_ids) for side in sides)
        if data.max_tokens is not None and length > data.max_tokens:
            draft.counts["more than max_tokens"] += 1
            continue
        overlong = max_length is not None and length > max_length
        if overlong and data.overlong == "drop":
            draft.counts["longer than max_length"] += 1
            continue
        if max_length is not None and overlong:
            sides = [side.cut(max_length) for side in sides]
        # a class needs no token to be learnt; of a pair both answers must have one left
        if not (isinstance(row.label, str) or all(side.trains for side in sides)):
            draft.counts["nothing left to train on"] += 1
            continue
        if row.rejected and sides[0].input_ids == sides[1].input_ids:
            draft.counts["cut to equal answers" if overlong else "chosen equals rejected"] += 1
            continue
        draft.counts["truncated"] += overlong
        yield replace(sides[0], rejected=sides[1]) if row.rejected else sides[0]


def _remedy(draft: Draft) -> str:
    """What to change when no row is left, by what removed most of them."""
    remedies = {
        "nothing left to train on": "raise trainer.max_length",
        "cut to equal answers": "raise trainer.max_length",
        "chosen equals rejected": "give pairs of two different answers",
        "longer than max_length": "raise trainer.max_length, or data.overlong=truncate",
        "more than max_tokens": "raise data.max_tokens",
        "answer too short": "lower data.min_chars",
        "empty answer": "is data.columns naming the right columns?",
        "held out": "give more rows, or data.eval_path instead of data.eval_split",
    }
    return remedies[max(remedies, key=lambda reason: draft.counts[reason])]


def _encoded(draft: Draft, renderer: Renderer) -> Iterator[Encoded]:
    mistakes = Mistakes()
    refused: set[int] = set()  # a row that its source's weight repeats is one mistake
    for batch in draft.examples.batches(_BATCH, _BATCH_BYTES):
        rendered: list[Rendered] = []
        wholes: list[tuple[Example, int]] = []  # the example of each row, and of how many sides the row is
        for example in batch:
            try:
                sides = _sides(example, renderer)
            except BadRow as error:
                issue = Issue(example.where, str(error))
                if hash(issue) not in refused:
                    mistakes.add(issue)
                refused.add(hash(issue))
                continue
            said = (example, replace(example, messages=example.rejected))
            pairs = zip(said, sides, strict=False)
            for doubt in sorted({doubt for told, rows in pairs for doubt in renderer.doubts(told, rows)}):
                draft.counts[doubt] += 1
                draft.firsts.setdefault(doubt, example.where)
            draft.counts["unrolled into turns"] += max(len(sides[0]) - 1, 0)
            draft.counts["nothing left to train on"] += not sides[0]
            for row in zip(*sides, strict=True):
                rendered += row
                wholes.append((example, len(row)))
        if not mistakes:
            encoded = iter(renderer.encode(rendered))
            for example, count in wholes:
                row, *others = (next(encoded) for _ in range(count))
                yield replace(row, label=example.label, rejected=others[0] if others else None)
    if mistakes:
        raise mistakes.refusal(f"data ({draft.name})")


def _sides(example: Example, renderer: Renderer) -> list[list[Rendered]]:
    """The rendered rows of an example; of a pair, one row for each of its two answers."""
    rows = renderer.render(example)
    if not example.rejected:
        return [rows]
    sides = [rows, renderer.render(replace(example, messages=example.rejected))]
    if any(len(side) != 1 for side in sides):
        raise BadRow("the template renders one of its answers as several rows, which cannot be compared")
    return sides


_DROPPED = (
    "empty answer",
    "chosen equals rejected",
    "duplicate",
    "answer too short",
    "longer than max_length",
    "more than max_tokens",
    "over the row limit",
)


def _remarks(draft: Draft, max_length: int | None) -> list[str]:
    counts, name = draft.counts, draft.name
    notes = [
        f"{name}: {counts[reason]} of {counts['read']} rows dropped: {reason}"
        for reason in _DROPPED
        if counts[reason]
    ]
    notes += [
        f"{name}: {counts[reason]} {said}"
        for reason, said in (
            ("repeated", "rows repeat earlier ones; data.deduplicate=true drops them"),
            ("cut to equal answers", f"pairs dropped: alike up to max_length={max_length}"),
            ("truncated", f"rows cut at max_length={max_length}"),
            ("nothing left to train on", f"rows dropped: their prompt alone fills max_length={max_length}"),
            (
                "unrolled into turns",
                "rows added, one for each answer: later turns change how earlier ones stand",
            ),
        )
        if counts[reason]
    ]
    return notes + [
        f"{name}: {counts[doubt]} rows with {doubt}, {where} first" for doubt, where in draft.firsts.items()
    ]
