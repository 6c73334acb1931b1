"""One example by itself: cleaned, whether it is dropped and why, and what identifies duplicates."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from runner.data.formats import Example
from runner.data.messages import Message

# Why a row is dropped whatever the others are; its number is what ``drop_reason`` returns, 0 for none.
MASKED_ROW = 4
DROP_REASONS = ("", "chosen equals rejected", "empty answer", "answer too short", "masked by its weight of 0")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")


def clean(example: Example) -> Example:
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


def drop_reason(example: Example, min_chars: int) -> int:
    """Which of ``DROP_REASONS`` a row meets first; ``min_chars`` counts characters of its answer."""
    if example.rejected == example.messages != ():
        return 1
    if example.empty:
        return 2
    calls = bool(example.messages and example.messages[-1].get("tool_calls"))
    return 3 if len(example.answer) < min_chars and not calls else 0


def prompt_identity(example: Example) -> bytes:
    """Sixteen bytes that two rows share when the same is asked: all up to the last question, or the text."""
    if example.text is not None:
        return _digest(" ".join(example.text.split()))
    last = max((i for i, message in enumerate(example.messages) if message["role"] == "user"), default=-1)
    asked = [(each["role"], " ".join(each["content"].split())) for each in example.messages[: last + 1]]
    return _digest(json.dumps([asked, example.tools], sort_keys=True, default=str))


def identity(example: Example) -> bytes:
    """Sixteen bytes that two rows share when all that can be rendered is the same, wherever it was read."""
    if example.text is not None:
        content = example.text if example.label is None else json.dumps([example.text, example.label])
    else:
        parts = [example.messages, example.tools, example.rejected, example.label]
        content = json.dumps(parts, sort_keys=True, default=str)
    return _digest(content)


def _digest(content: str) -> bytes:
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
