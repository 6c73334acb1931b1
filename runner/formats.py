"""Row formats: recognise them by their columns and turn every row into messages (or plain text).

A message is ``{"role": system|user|assistant|tool, "content": str}``. Alpaca's user messages also carry
``instruction`` and ``input``, so that an Alpaca template can keep them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runner.errors import nearest

Row = dict[str, Any]
Message = dict[str, Any]

# Names that data sets in the wild use for the four roles (ShareGPT and its descendants).
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# What each format needs (any of the alternatives of each part), most specific first.
FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen",), ("rejected",)),
    "messages": (("messages", "conversations", "conversation"),),
    "alpaca": (("instruction",), ("output",)),
    "prompt_completion": (("prompt",), ("completion",)),
    "text": (("text",),),
}


class BadRow(ValueError):
    """A row that cannot be used; the message says why, the reader adds file and row number."""


@dataclass(frozen=True)
class Example:
    """One training example: messages to be rendered, or plain text; ``source`` is its row number, from 1."""

    source: int
    messages: tuple[Message, ...] = ()
    text: str | None = None

    @property
    def answer(self) -> str:
        """The last assistant message, or the whole text."""
        return self.text if self.text is not None else str(self.messages[-1]["content"])


def recognise(columns: Iterable[str]) -> str | None:
    """Name the format that a set of column names fits, or None."""
    names = set(columns)
    return next((name for name, parts in FORMATS.items() if all(names & set(part) for part in parts)), None)


def expected() -> str:
    """All recognised formats and their columns, for a message."""
    return "; ".join(
        f"{name}: {' + '.join('|'.join(part) for part in parts)}" for name, parts in FORMATS.items()
    )


def to_example(row: Row, source: int, row_format: str) -> Example:
    """Normalise one row of a known format. Raises ``BadRow``."""
    if row_format == "text":
        return Example(source, text=_text(row, "text"))
    messages = _CONVERTERS[row_format](row)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("has no assistant message to train on")
    while messages[-1]["role"] != "assistant":  # what follows the last answer can neither be trained nor seen
        messages.pop()
    return Example(source, messages=tuple(messages))


def _alpaca(row: Row) -> list[Message]:
    instruction, extra = _text(row, "instruction"), _text(row, "input", optional=True)
    content = f"{instruction}\n{extra}" if extra.strip() else instruction
    messages = [*_system(row), *_history(row)]
    messages.append({"role": "user", "content": content, "instruction": instruction, "input": extra})
    return [*messages, {"role": "assistant", "content": _text(row, "output")}]


def _history(row: Row) -> list[Message]:
    turns = row.get("history") or []
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _prompt_completion(row: Row) -> list[Message]:
    return [*_system(row), *_side(row, "prompt", "user"), *_side(row, "completion", "assistant")]


def _preference(row: Row) -> list[Message]:
    """The chosen answer of a preference pair, which is what supervised training learns from."""
    key = next((name for name in ("prompt", "conversations", "messages") if row.get(name)), None)
    prompt = _side(row, key, "user") if key else []
    return [*_system(row), *prompt, *_side(row, "chosen", "assistant")]


def _conversation(row: Row) -> list[Message]:
    key = next(name for name in FORMATS["messages"][0] if name in row)
    messages = _messages(row[key], key)
    return messages if messages[0]["role"] == "system" else [*_system(row), *messages]


def _system(row: Row) -> list[Message]:
    text = row.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _side(row: Row, key: str, role: str) -> list[Message]:
    """One side of a pair: a string, one message, or a list of messages."""
    value = row.get(key)
    if isinstance(value, dict):
        value = [value]
    return _messages(value, key) if isinstance(value, list) else [{"role": role, "content": _text(row, key)}]


def _messages(value: Any, key: str) -> list[Message]:
    if isinstance(value, str):  # CSV and some Parquet files hold the list as JSON text
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"{key} is text that is not JSON") from error
    if not isinstance(value, (list, tuple)) or not len(value):
        raise BadRow(f"{key} must be a list of messages, got {_shown(value)}")
    return [_message(item, f"{key}[{number}]") for number, item in enumerate(value)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be a message, got {_shown(item)}")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if role not in ROLES:
        raise BadRow(f"{where} has the unknown role {role!r}; {nearest(role, ROLES)}")
    if content is None and item.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise BadRow(f"{where} has no text content, got {_shown(content)}")
    kept = {name: item[name] for name in ("tool_calls", "name", "tool_call_id") if item.get(name)}
    return {"role": ROLES[role], "content": content, **kept}


def _text(row: Row, key: str, optional: bool = False) -> str:
    value = row.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise BadRow(f"has no {key!r}" if key not in row else f"has null in {key!r}")
    if not isinstance(value, str):
        raise BadRow(f"{key!r} must be text, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


_CONVERTERS = {
    "alpaca": _alpaca,
    "messages": _conversation,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
}
