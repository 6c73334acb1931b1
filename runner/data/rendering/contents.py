"""What a message says (words, reasoning, calls with their arguments), and what of it stands in a text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runner.data.messages import Message
from runner.data.rendering.reasoning import Delimiters, split_reasoning

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Contents:
    """What an answer says: its words, its reasoning, and of each call the name and all keys and values.

    ``closing`` ends the block in which the row has the reasoning; nothing where that has a key of its own.
    """

    words: str
    reasoning: str
    calls: tuple[tuple[str, tuple[str, ...]], ...] = ()
    closing: str = ""

    def lost(self, text: str) -> list[str]:
        """What does not stand in a text, as reasons to count."""
        found = []
        if self.words and not shows(text, self.words):
            found.append("words of an answer left out by the template")
        if self.reasoning and not shows(text, self.reasoning):
            found.append("reasoning left out by the template")
        elif self.reasoning and self.closing not in text:
            found.append("reasoning moved from its row's delimiters into the template's own")
        if any(not shows(text, name) for name, _ in self.calls):
            found.append("tool calls left out by the template")
        elif any(not shows(text, part) for _, arguments in self.calls for part in arguments):
            found.append("arguments of tool calls left out by the template")
        return found

    def anything_in(self, text: str) -> bool:
        """Whether words or a call stand in a text: reasoning alone is no answer."""
        return bool(self.words and shows(text, self.words)) or any(
            shows(text, name) for name, _ in self.calls
        )


def contents_of(message: Message, delimiters: Sequence[Delimiters]) -> Contents:
    """What an answer says; reasoning may stand in a key of its own, or in a block before the words."""
    parts = split_reasoning(message["content"], delimiters)
    words, reasoning = parts.answer, reasoning_of(message) or (parts.reasoning or "")
    calls = tuple(
        (call_name(call), tuple(_leaves(arguments_of(call)))) for call in message.get("tool_calls", ())
    )
    closing = _closing(message["content"], delimiters) if parts.reasoning else ""
    return Contents(words.strip(), reasoning.strip(), calls, closing)


def _closing(text: str, delimiters: Sequence[Delimiters]) -> str:
    """The closing of the block with which a text begins."""
    known = ((open_, close) for open_, close in delimiters if close in text)
    return next((close for open_, close in known if text.lstrip().startswith(open_)), "")


def reasoning_of(message: Message) -> str:
    """The reasoning that a message has in a key of its own."""
    return next((text for key in REASONING_KEYS if isinstance(text := message.get(key), str) and text), "")


def call_name(call: Any) -> str:
    """The name in a tool's schema or call, which may stand under ``function``."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def arguments_of(call: Any) -> Any:
    """The arguments of a call, from JSON text where they are text."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    arguments = inner.get("arguments") if isinstance(inner, dict) else None
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif value != "":
        yield value if isinstance(value, str) else json.dumps(value)


def shows(text: str, words: str) -> bool:
    """Whether a text has some words: as they are, or as JSON or Python write them in quotes."""
    return words in text or any(form in text for form in _forms(words))


def _forms(words: str) -> Iterator[str]:
    for ascii_only in (False, True):
        escaped = json.dumps(words, ensure_ascii=ascii_only)[1:-1]
        yield escaped
        # as jinja's tojson writes it into HTML, and as JSON text within JSON
        yield (
            escaped.replace("<", "\\u003c")
            .replace(">", "\\u003e")
            .replace("&", "\\u0026")
            .replace("'", "\\u0027")
        )
        yield json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]
    yield repr(words)[1:-1]
    if words in _PYTHON:
        yield _PYTHON[words]


_PYTHON = {"null": "None", "true": "True", "false": "False"}
