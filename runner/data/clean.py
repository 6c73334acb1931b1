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
DROP_REASONS = ("", "chosen equals rejected", "empty answer", "answer too short")

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
    return 3 if len(example.answer) < min_chars else 0


def identity(example: Example) -> bytes:
    """Sixteen bytes that two rows share when all that can be rendered is the same, wherever it was read."""
    if example.text is not None:
        content = example.text
    else:
        parts = [example.messages, example.tools, example.rejected, example.label]
        content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
