"""Show what would be trained on: rows with their trained part marked, lengths, and what is lost."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from recipes import OBJECTIVES
from runner.config.adapters import check_rows
from runner.config.recipe_rules import training_recipe
from runner.config.settings import RunConfig
from runner.core import console
from runner.data.chat_template_check import apply_template
from runner.data.formats import Kind
from runner.data.labels import IGNORE, Encoded
from runner.data.max_length import row_limit
from runner.data.prepare import prepare
from runner.data.stop_tokens import check_turns
from runner.data.template import Renderer
from runner.models.model import find_base
from runner.reports import terminal
from runner.runs.run_folder import RunFolder

_SHOWN_ROWS = 3


def run(config: RunConfig, folder: RunFolder) -> None:
    """Write ``inspect.jsonl`` (a line per training row) and print a few rows, counts and a length histogram.

    The trainer's class says what the rows are for: with ``trainer=dpo`` they are pairs. Needs the tokenizer
    only. Raises ``ConfigError`` as the training would.
    """
    with folder.timed("check"):
        check_rows(config)
        base = find_base(config.model)
        template_notes = apply_template(base.tokenizer, config.template)
        renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
        kind = _kind(config)
        marks = check_turns(base, renderer, kind != "classification" and config.data.format != "text")
        max_length = row_limit(config, base.config)
    with folder.timed("data"):
        data = prepare(config.data, renderer, max_length, config.seed, kind)
        data.check_held_out()
    folder.notes += [*base.notes, *template_notes, *marks, *data.notes]
    folder.record |= {
        "model": base.record(),
        "data": {split.name: split.record() for split in (data.train, data.eval) if split},
        "rows_from_cache": data.cached,
    }
    rows = data.train.rows
    folder.write_lines("inspect.jsonl", (_described(base.tokenizer, renderer, row) for row in rows))
    for row in rows[:_SHOWN_ROWS]:
        terminal.marked_row(row.source, _pieces(base.tokenizer, row))
        if row.rejected is not None:
            terminal.marked_row(row.source, _pieces(base.tokenizer, row.rejected), "rejected")
    terminal.histogram("tokens a row", [len(row.input_ids) for row in rows], max_length)
    for split in (data.train, data.eval):
        if split is not None:
            terminal.counts(split)
    for note in folder.notes:
        console.warn(note)


def _kind(config: RunConfig) -> Kind:
    """What the trainer of the config learns from."""
    recipe = training_recipe(config.trainer["_target_"], OBJECTIVES)
    return OBJECTIVES[recipe].kind if recipe else "completion"


def _described(tokenizer: Any, renderer: Renderer, row: Encoded) -> dict[str, Any]:
    """A line of ``inspect.jsonl``."""
    described = {
        "row": row.source,
        "text": tokenizer.decode(row.input_ids),
        "trained_text": renderer.trained_text(row),
        "tokens": len(row.input_ids),
        "trained_tokens": sum(label != IGNORE for label in row.labels),
    }
    if row.rejected is not None:
        described |= {"rejected_text": renderer.trained_text(row.rejected)}
    return described | ({"label": row.label} if row.label is not None else {})


def _pieces(tokenizer: Any, row: Encoded) -> list[tuple[str, bool]]:
    """The row's text in runs of tokens, each with whether it is trained on."""
    tokens = zip(row.input_ids, row.labels, strict=True)
    runs = groupby(tokens, key=lambda token: token[1] != IGNORE)
    return [(tokenizer.decode([token for token, _ in run]), trained) for trained, run in runs]
