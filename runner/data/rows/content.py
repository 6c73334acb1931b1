"""The words of a message from its content: text, or the parts of a multimodal chat."""

from __future__ import annotations

from typing import Any

from runner.data.rows.read_row import ReadRow
from runner.data.rows.values import BadRow, is_given, listed, shown

_TEXTS = (None, "text", "input_text", "output_text")  # types of a part that is text


def text_of_parts(parts: list[Any] | tuple[Any, ...], where: str, row: ReadRow) -> str | None:
    """The texts of all parts in a row; None where no part has one. A null text is none, and is counted.

    Raises ``BadRow`` for a part that is not text: an image, a sound, a file.
    """
    texts = []
    for number, part in enumerate(parts):
        place = f"{where}[{number}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise BadRow(f"{place} must be a part with a text, got {shown(part)}")
        kind = part.get("type")
        if kind not in _TEXTS:
            message = f"{place} is a part of the type {kind!r}; has no text content that could be trained on"
            raise BadRow(message)
        text = part.get("text")
        others = [name for name in part if name not in ("type", "text") and is_given(part[name])]
        if text is None and others:
            raise BadRow(f"{place} is a part with {listed(others)}; has no text content to train on")
        row.unread_keys.update(f"content.{name}" for name in others)
        if text is None:
            row.doubts.add("a null text in its content")
        elif isinstance(text, str):
            texts.append(text)
        else:
            raise BadRow(f"{place} has no text content, got {shown(text)}")
    return "".join(texts) if texts else None
