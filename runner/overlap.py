"""Held-out rows that are trained on too: a score on them says nothing about new rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runner.errors import Problem
from runner.formats import Example
from runner.messages import Message

_SHOWN = 3  # rows named in a note


@dataclass(frozen=True)
class Overlap:
    """How many held-out rows are training rows too, what to say of it, and the mistake if none is new."""

    rows: int
    notes: list[str]
    problem: Problem | None


def overlap(train: Iterable[Example], held_out: Sequence[Example]) -> Overlap:
    """Compare held-out with training rows.

    Rows are the same when they say the same, in whatever format and with whatever white space. Held-out rows
    of which only the prompt is in training are said too.
    """
    rows: dict[str, Example] = {}
    prompts: set[str] = set()
    for example in train:
        rows.setdefault(_said(example), example)
        prompts.add(_asked(example))
    shared = [example for example in held_out if _said(example) in rows]
    asked = [e for e in held_out if e.messages and _asked(e) in prompts and _said(e) not in rows]
    notes, problem = [], None
    if shared:
        named = _named(shared, rows)
        notes.append(f"{len(shared)} of {len(held_out)} held-out rows are training rows too: {named}")
    if asked:
        first = asked[0].where
        notes.append(
            f"{len(asked)} of {len(held_out)} held-out rows have the prompt of a training row, {first} first"
        )
    if shared and len(shared) == len(held_out):
        message = f"all {len(held_out)} held-out rows are training rows too: {_named(shared, rows)}"
        hint = "rows that are not trained on; data.eval_split=0.1 holds some of the training rows out"
        problem = Problem("data.eval_path", message, hint)
    return Overlap(len(shared), notes, problem)


def _named(shared: Sequence[Example], rows: dict[str, Example]) -> str:
    """The first of the shared rows, each with the training row that it repeats."""
    pairs = [f"{example.where} is {rows[_said(example)].where}" for example in shared[:_SHOWN]]
    return "; ".join(pairs) + ("; ..." if len(shared) > _SHOWN else "")


def _said(example: Example) -> str:
    """What a row says, up to white space."""
    if example.text is not None:
        return " ".join(example.text.split())
    return _plain(example.messages) + _plain(example.rejected)


def _asked(example: Example) -> str:
    """What comes before its last answer."""
    return _plain(example.messages[:-1])


def _plain(messages: Iterable[Message]) -> str:
    parts = [(m["role"], " ".join(m["content"].split()), m.get("tool_calls")) for m in messages]
    return json.dumps(parts, sort_keys=True, default=str)
