"""Equal rows where there should be none: held out and trained on too, or with opposite labels.

A score on a held-out row that is trained on says nothing about new rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from runner.core.errors import Issue
from runner.data.example_store import first_equal
from runner.data.formats import Example
from runner.data.messages import Message

_SHOWN = 3  # rows named in a note
_SWAPPED = "the two answers of an earlier pair, swapped"
_OTHER_LABEL = "the content of an earlier row, and another label"


@dataclass(frozen=True)
class Overlap:
    """How many held-out rows are training rows too, warnings, and the config error if none is new."""

    rows: int
    notes: list[str]
    issue: Issue | None


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> Overlap:
    """Compare held-out with training rows, of which only what held-out rows share is kept in memory.

    Rows are equal when their messages are, in whatever format and up to white space. A warning also counts
    held-out rows of which only the prompt is in training.
    """
    contents = set(map(_content_digest, held_out))
    known_prompts = {_prompt_digest(example) for example in held_out if example.messages}
    rows: dict[bytes, str] = {}
    prompts: set[bytes] = set()
    for example in train:
        if (digest := _content_digest(example)) in contents:
            rows.setdefault(digest, example.where)
        if example.messages and (digest := _prompt_digest(example)) in known_prompts:
            prompts.add(digest)
    count = shared = 0
    named: list[str] = []
    near: list[str] = []
    for example in held_out:
        count += 1
        if where := rows.get(_content_digest(example)):
            shared += 1
            named += [f"{example.where} is {where}"] if shared <= _SHOWN + 1 else []
        elif example.messages and _prompt_digest(example) in prompts:
            near.append(example.where)
    pairs = "; ".join([*named[:_SHOWN], *(["..."] if len(named) > _SHOWN else [])])
    notes, issue = [], None
    if shared:
        notes.append(f"{shared} of {count} held-out rows are training rows too: {pairs}")
    if near:
        notes.append(
            f"{len(near)} of {count} held-out rows have the prompt of a training row, {near[0]} first"
        )
    if shared and shared == count:
        message = f"all {count} held-out rows are training rows too: {pairs}"
        hint = "rows that are not trained on; data.eval_split=0.1 holds some of the training rows out"
        issue = Issue("data.eval_path", message, hint)
    return Overlap(shared, notes, issue)


def contradictions(name: str, examples: Sequence[Example]) -> list[str]:
    """A warning about rows of a split whose label, for the same content, is not that of an earlier row.

    Of pairs: whose better answer is the worse one of an earlier pair, and the other way round.
    """
    digests, labels = np.zeros((len(examples), 2), np.uint64), list[object]()
    pairs = False
    for number, example in enumerate(examples):
        pairs = bool(example.rejected)
        sides = [_plain(example.messages), _plain(example.rejected)] if pairs else []
        labels.append(sides == sorted(sides) if pairs else example.label)
        digest = _digest("".join(sorted(sides))) if pairs else _content_digest(example)
        digests[number] = np.frombuffer(digest, np.uint64)
    codes = np.unique(list(map(str, labels)), return_inverse=True)[1]
    found = np.flatnonzero(codes != codes[first_equal(digests)])
    if not len(found):
        return []
    what = _SWAPPED if pairs else _OTHER_LABEL
    return [f"{name}: {len(found):,} rows with {what}, {examples[int(found[0])].where} first"]


def _content_digest(example: Example) -> bytes:
    """Digest of a row's text or messages, up to white space."""
    if example.text is not None:
        return _digest(" ".join(example.text.split()))
    return _digest(_plain(example.messages) + _plain(example.rejected))


def _prompt_digest(example: Example) -> bytes:
    """Digest of what comes before its last answer."""
    return _digest(_plain(example.messages[:-1]))


def _digest(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode(errors="surrogatepass"))


def _plain(messages: Iterable[Message]) -> str:
    parts = [(m["role"], " ".join(m["content"].split()), m.get("tool_calls")) for m in messages]
    return json.dumps(parts, sort_keys=True, default=str)
