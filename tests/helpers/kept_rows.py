"""Rows of any number, prepared with the store of prepared rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.config.settings import DataSettings, TemplateSettings
from runner.data.chat_template_check import apply_template
from runner.data.prepare import Data, prepare
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer


def row(number: int, words: int = 20) -> dict[str, str]:
    said = " ".join(f"word{(number * 7 + place * place) % 997}" for place in range(words))
    return {"prompt": f"Question {number}?", "completion": f"Answer {number}: {said}"}


def jsonl(path: Path, rows: Iterator[dict] | list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def made(
    path: Any,
    max_length: int | None = 256,
    seed: int = 0,
    kind: Any = "completion",
    renderer: Renderer | None = None,
    template: dict | None = None,
    **data: Any,
) -> Data:
    settings = DataSettings(path=str(path), **data)
    if renderer is None:
        tokenizer, own = byte_tokenizer(), TemplateSettings(**(template or {}))
        apply_template(tokenizer, own)
        renderer = Renderer(tokenizer, own, settings.train_on)
    return prepare(settings, renderer, max_length, seed, kind)


def said(data: Data) -> Any:
    """Everything that is known of the rows, but whether they were found."""
    splits = [split for split in (data.train, data.eval) if split]
    records = [(split.record(), split.longest, split.first_seen) for split in splits]
    return records, [(list(split.rows), list(split.examples)) for split in splits], data.notes
