"""From sources to token rows: clean, filter, split, render, mask, truncate; every removed row is counted."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from runner.errors import Problem, Refused
from runner.formats import Example, Kind, unpaired
from runner.labels import Encoded, Rendered
from runner.messages import BadRow, Message
from runner.overlap import overlap
from runner.reader import Source, limited, read_sources
from runner.settings import DataSettings
from runner.split import Data, Split
from runner.template import Renderer

__all__ = ["Data", "Split", "prepare"]

_BATCH = 1000  # rows tokenised at once
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")


def prepare(
    data: DataSettings, renderer: Renderer, max_length: int | None, seed: int, kind: Kind = "answers"
) -> Data:
    """Read, clean, split, render and mask all rows of a run.

    ``kind`` is what the recipe learns from. Raises ``Refused`` for unusable rows, each named, and when no row
    has anything left to train on.
    """
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
        held_out.counts["also in train"], known = shared.rows, shared.problem
        notes += shared.notes
    for split in (train, held_out):
        if split is not None:
            if (
                kind == "feedback"
            ):  # only now, so that both answers of a pair are on the same side of the split
                split.examples = [part for example in split.examples for part in unpaired(example)]
            _encode(split, data, renderer, max_length)
            split.counts = +split.counts  # without the reasons that met no row
            notes += _remarks(split, max_length)
    return Data(train, held_out, notes, known)


def _read(data: DataSettings, seed: int, kind: Kind) -> dict[str, list[Source]]:
    """All sources by key; the mistakes of training and held-out files are reported together."""
    sources: dict[str, list[Source]] = {}
    problems: list[Problem] = []
    for key, given in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        try:
            sources[key] = read_sources(given, data, key, seed, kind) if given else []
        except Refused as refused:
            problems += refused.problems
    if problems:
        raise Refused(problems)
    return sources


def _filter(name: str, sources: list[Source], data: DataSettings) -> Split:
    split = Split(name, sources, [])
    seen: dict[str, Example] = {}
    for row in (example for source in sources for example in source.examples):
        split.counts["read"] += 1
        example = _clean(row) if data.clean else row
        first = seen.setdefault(_identity(example), row)
        duplicate = first is not row  # a row that its source's weight repeats is the same object
        if example.rejected == example.messages != ():
            split.counts["chosen equals rejected"] += 1
        elif example.empty:
            split.counts["empty answer"] += 1
        elif len(example.answer) < data.min_chars:
            split.counts["answer too short"] += 1
        elif data.deduplicate and duplicate:
            split.counts["duplicate"] += 1
        else:
            split.counts["repeated"] += duplicate
            split.examples.append(example)
    return split


def _clean(example: Example) -> Example:
    """Unicode NFC, plain line ends, no control or zero-width characters, no white space around a message."""

    def tidy(text: str) -> str:
        plain = unicodedata.normalize("NFC", text).replace("\r\n", "\n")
        return _CONTROL.sub("", plain).strip()

    if example.text is not None:
        return replace(example, text=tidy(example.text))
    texts = ("content", "instruction", "input", "reasoning_content", "thinking")

    def tidied(messages: Iterable[Message]) -> tuple[Message, ...]:
        return tuple({key: tidy(v) if key in texts else v for key, v in m.items()} for m in messages)

    return replace(example, messages=tidied(example.messages), rejected=tidied(example.rejected))


def _identity(example: Example) -> str:
    """What makes two rows the same: all that can be rendered, wherever it was read."""
    if example.text is not None:
        return example.text
    parts = [example.messages, example.tools, example.rejected, example.label]
    return json.dumps(parts, sort_keys=True, default=str)


def _split_off(train: Split, share: float, seed: int) -> Split:
    """Move about ``share`` of the rows, at least one, out of training; equal rows go together, and once."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(train.examples):
        groups.setdefault(_identity(example), []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    moved: set[int] = set()
    firsts: set[int] = set()
    for indices in order:
        if len(moved) >= max(1, round(len(train.examples) * share)):
            break
        moved.update(indices)
        firsts.add(indices[0])
    held_out = [train.examples[index] for index in sorted(firsts)]
    train.examples = [example for index, example in enumerate(train.examples) if index not in moved]
    train.counts["held out"] = len(moved)
    counts = Counter({"read": len(moved), "duplicate": len(moved) - len(firsts)})
    return Split("eval", train.sources, held_out, counts=+counts)


def _limit(split: Split, rows: int | None, seed: int) -> None:
    if rows is not None and len(split.examples) > rows:
        kept = sorted(random.Random(seed).sample(range(len(split.examples)), rows))
        split.counts["over the row limit"] += len(split.examples) - rows
        split.examples = [split.examples[index] for index in kept]


def _encode(split: Split, data: DataSettings, renderer: Renderer, max_length: int | None) -> None:
    for row in _encoded(split, renderer):
        sides = [side for side in (row, row.rejected) if side is not None]
        length = max(len(side.input_ids) for side in sides)
        if data.max_tokens is not None and length > data.max_tokens:
            split.counts["more than max_tokens"] += 1
            continue
        overlong = max_length is not None and length > max_length
        if overlong and data.overlong == "drop":
            split.counts["longer than max_length"] += 1
            continue
        if max_length is not None and overlong:
            sides = [side.cut(max_length) for side in sides]
        # a class needs no token to be learnt; of a pair both answers must have one left
        if not (isinstance(row.label, str) or all(side.trains for side in sides)):
            split.counts["nothing left to train on"] += 1
            continue
        if row.rejected and sides[0].input_ids == sides[1].input_ids:
            split.counts["cut to equal answers" if overlong else "chosen equals rejected"] += 1
            continue
        split.counts["truncated"] += overlong
        split.rows.append(replace(sides[0], rejected=sides[1]) if row.rejected else sides[0])
    if not split.rows:
        lost = ", ".join(f"{count} {reason}" for reason, count in split.counts.items() if count)
        raise Refused(Problem(f"data ({split.name})", f"no row is left to train on: {lost}", _remedy(split)))


def _remedy(split: Split) -> str:
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
    return remedies[max(remedies, key=lambda reason: split.counts[reason])]


def _encoded(split: Split, renderer: Renderer) -> Iterator[Encoded]:
    problems: list[Problem] = []
    for start in range(0, len(split.examples), _BATCH):
        rendered: list[Rendered] = []
        wholes: list[tuple[Example, int]] = []  # the example of each row, and of how many sides the row is
        for example in split.examples[start : start + _BATCH]:
            try:
                sides = _sides(example, renderer)
            except BadRow as error:
                problems.append(Problem(example.where, str(error)))
                continue
            said = (example, replace(example, messages=example.rejected))
            pairs = zip(said, sides, strict=False)
            for doubt in sorted({doubt for told, rows in pairs for doubt in renderer.doubts(told, rows)}):
                split.counts[doubt] += 1
                split.firsts.setdefault(doubt, example.where)
            split.counts["unrolled into turns"] += max(len(sides[0]) - 1, 0)
            split.counts["nothing left to train on"] += not sides[0]
            for row in zip(*sides, strict=True):
                rendered += row
                wholes.append((example, len(row)))
        if not problems:
            encoded = iter(renderer.encode(rendered))
            for example, count in wholes:
                row, *others = (next(encoded) for _ in range(count))
                yield replace(row, label=example.label, rejected=others[0] if others else None)
    if problems:
        # a row that its source's weight repeats is one mistake
        raise Refused(limited(list(dict.fromkeys(problems)), f"data ({split.name})"))


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


def _remarks(split: Split, max_length: int | None) -> list[str]:
    counts, name = split.counts, split.name
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
        f"{name}: {counts[doubt]} rows with {doubt}, {where} first" for doubt, where in split.firsts.items()
    ]
