"""What of a conversation's text is outside of the messages that their file marks as not trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from runner.data.messages import BadRow, Message
from runner.data.rendering.chat_template import PROBE

Span = tuple[int, int]  # first character, and that after the last one


def unmarked(
    text: str, messages: Sequence[Message], written: Callable[[list[Message]], str], stop: re.Pattern[str]
) -> tuple[Span, ...]:
    """The spans of a text that no message with a ``weight`` of 0 is in, with its header and its end.

    ``written`` made the text of the messages, ``stop`` finds control tokens. Raises ``BadRow`` where the
    place of a message cannot be told.
    """

    def place(index: int) -> Span | None:
        return _place(text, messages, index, written) if 0 <= index < len(messages) else None

    def end(index: int) -> int | None:
        """Where a message ends: behind the first control token between its words and those that follow."""
        if (own := place(index)) is None:
            return None
        following = place(index + 1)
        control = stop.search(text, own[1], following[0]) if following else None
        return control.end() if control else own[1]

    spans, begin = [], 0
    for index, message in enumerate(messages):
        if message.get("weight") != 0 or (own := place(index)) is None:
            continue
        before = end(index - 1) if index else 0
        spans.append((begin, own[0] if before is None else before))
        begin = end(index) or own[1]
    return tuple((first, last) for first, last in [*spans, (begin, len(text))] if first < last)


def _place(
    text: str, messages: Sequence[Message], index: int, written: Callable[[list[Message]], str]
) -> Span | None:
    """The words and calls of a message: what differs where another stands in for it. None if not written."""
    message = messages[index]
    sections = {"instruction": PROBE, "input": ""} if "instruction" in message else {}
    bare = {"role": message["role"], "content": PROBE, **sections}
    for stand_in in (bare, {**message, **bare}):  # without its calls, a result may have none to belong to
        try:
            other = written([*messages[:index], stand_in, *messages[index + 1 :]])
        except BadRow:
            continue
        if PROBE not in other:
            return None
        before, _, after = other.partition(PROBE)
        start = _alike(text, before)
        return start, len(text) - _alike(text[start:][::-1], after[::-1])
    problem = "is marked as not trained, and the template does not show where it ends"
    raise BadRow(f"message {index} {problem}; data.train_on=assistant trains on answers only")


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
