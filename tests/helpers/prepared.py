"""Rows of a test prepared as a run prepares them, with the tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.config.settings import DataSettings, TemplateSettings
from runner.core.errors import ConfigError
from runner.data.prepare import Data, Split, prepare
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer

USER = {"role": "user", "content": "q"}
# Writes tools and calls, their arguments with tojson.
TOOLS = (
    "{% for t in tools or [] %}TOOL:{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}CALL:{{ c.function.name }}:{{ c.function.arguments | tojson }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def answer(content: Any = "yes", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def jsonl(file: Path, *rows: Any) -> Path:
    """Write rows, each as it is if it is text."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def prepared(path: Any, kind: Any = "completion", template: str | None = None, **data: Any) -> Data:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    path = path if isinstance(path, list) else str(path)
    settings = DataSettings(path=path, **{"cache": False, **data})
    return prepare(settings, Renderer(tokenizer, TemplateSettings()), None, 0, kind)


def refusal(path: Any, kind: Any = "completion", **data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        prepared(path, kind, **data)
    return str(caught.value)


def trained(split: Split | None) -> list[str]:
    """What each row trains on, without its end token; of a pair the better and the worse answer."""
    assert split is not None
    decode = byte_tokenizer().decode
    texts = []
    for row in split.rows:
        sides = [row] if row.rejected is None else [row, row.rejected]
        said = [decode([label for label in side.labels if label != -100]) for side in sides]
        texts.append(" / ".join(text.removesuffix("<|im_end|>") for text in said))
    return texts


def texts(split: Split) -> list[str]:
    """The whole text of each row."""
    return [byte_tokenizer().decode(row.input_ids) for row in split.rows]
