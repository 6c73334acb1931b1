"""A prompt and its answer as one conversation, also where the answer's column repeats the prompt."""

from __future__ import annotations

from typing import Any

from runner.data.rows.calls import same_calls
from runner.data.rows.values import BadRow, Message

_WORDS = 3  # of a prompt, below which an answer may begin alike by chance


def joined(prompt: list[Message], answer: list[Message], key: str) -> list[Message]:
    """A prompt before its answer; ``key`` is the column of the answer.

    An answer that does not begin with an assistant message is a conversation. What ends the prompt and begins
    the conversation is taken once; where it asks the same, an answer at the end of the prompt is left out.
    Raises ``BadRow`` where the two contradict each other: two different system prompts, or two
    questions in a row.
    """
    if not prompt or answer[0]["role"] in ("assistant", "tool"):
        return prompt + answer
    (system, before), (other, after) = _parted(prompt), _parted(answer)
    if system and other and not _equal(system, other):
        raise BadRow(f"the prompt and {key!r} have different system prompts")
    asked = _without_answer(before)
    if asked != before and _shared(asked, after):  # it asks again, for another answer
        before = asked
    shared = _shared(before, after)
    if not shared and before and after and (before[-1]["role"], after[0]["role"]) == ("user", "user"):
        raise BadRow(f"{key!r} begins with another question than the prompt")
    return (system or other) + before + after[shared:]


def repeats(prompt: list[Message], answer: Any) -> bool:
    """Whether the text of an answer begins with that of the last question, and goes on behind it."""
    if not isinstance(answer, str) or not prompt or prompt[-1]["role"] != "user":
        return False
    text = prompt[-1]["content"].rstrip()
    if len(text.split()) < _WORDS or not answer.startswith(text):
        return False
    rest = answer[len(text) :]
    return bool(rest.strip()) and not (text[-1].isalnum() and rest[0].isalnum())


def without_prompt(prompt: list[Message], answer: str) -> str:
    """An answer that repeats the last question, without that."""
    return answer[len(prompt[-1]["content"].rstrip()) :].lstrip()


def _without_answer(messages: list[Message]) -> list[Message]:
    """Messages up to the last question or result."""
    last = max((i for i, message in enumerate(messages) if message["role"] != "assistant"), default=-1)
    return messages[: last + 1]


def _shared(before: list[Message], after: list[Message]) -> int:
    """How many messages end the one and begin the other, at most."""
    most = min(len(before), len(after))
    return next((n for n in range(most, 0, -1) if _equal(before[-n:], after[:n])), 0)


def _parted(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system prompt, and the rest."""
    first = 1 if messages[0]["role"] == "system" else 0
    return messages[:first], messages[first:]


def _equal(one: list[Message], other: list[Message]) -> bool:
    return len(one) == len(other) and all(map(_equal_messages, one, other))


def _equal_messages(one: Message, other: Message) -> bool:
    alike = one["role"] == other["role"] and one["content"].split() == other["content"].split()
    return alike and same_calls(one.get("tool_calls"), other.get("tool_calls"))
