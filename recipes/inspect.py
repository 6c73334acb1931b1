"""Show what would be trained on: rows with their trained part marked, lengths, and what is lost."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from runner import console
from runner.artifacts import RunFolder
from runner.model import find_base
from runner.prepare import prepare
from runner.settings import RunConfig
from runner.template import IGNORE, Encoded, Renderer, apply_template

_SHOWN_ROWS = 3


def run(config: RunConfig, folder: RunFolder) -> None:
    """Write ``inspect.jsonl`` (a line per training row) and print a few rows, counts and a length histogram.

    Needs the tokenizer only. Raises ``Refused`` as the training would.
    """
    with folder.timed("check"):
        base = find_base(config.model)
        apply_template(base.tokenizer, config.template)
        renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
    max_length = config.trainer.get("max_length", 1024)
    with folder.timed("data"):
        data = prepare(config.data, renderer, max_length, config.seed)
    folder.notes += [*base.notes, *data.notes]
    folder.record |= {
        "model": base.record(),
        "data": {split.name: split.record() for split in (data.train, data.eval) if split},
    }
    rows: list[dict[str, Any]] = [
        {
            "row": row.source,
            "text": base.tokenizer.decode(row.input_ids),
            "trained_text": renderer.trained_text(row),
            "tokens": len(row.input_ids),
            "trained_tokens": row.trained_tokens,
        }
        for row in data.train.rows
    ]
    folder.write_lines("inspect.jsonl", rows)
    for row in data.train.rows[:_SHOWN_ROWS]:
        console.marked_row(row.source, _pieces(base.tokenizer, row))
    lengths = [row["tokens"] for row in rows]
    console.histogram("tokens a row", lengths, max_length)
    for split in (data.train, data.eval):
        if split is not None:
            console.counts(split)
    for note in folder.notes:
        console.note(note)


def _pieces(tokenizer: Any, row: Encoded) -> list[tuple[str, bool]]:
    """The row's text in runs of tokens, each with whether it is trained on."""
    tokens = zip(row.input_ids, row.labels, strict=True)
    runs = groupby(tokens, key=lambda token: token[1] != IGNORE)
    return [(tokenizer.decode([token for token, _ in run]), trained) for trained, run in runs]
