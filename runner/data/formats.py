"""Rows of every format become messages (or plain text).

Alpaca's user messages also carry ``instruction`` and ``input``, so that a template can keep them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.config.objective import Kind
from runner.data.messages import (
    has_content,
    is_trained,
    messages_of,
    new_message,
    shows_something,
    system_turn,
    text_of,
)
from runner.data.rows.calls import tools_of
from runner.data.rows.joining import joined, repeats, without_prompt
from runner.data.rows.labels import class_of, liked
from runner.data.rows.read_row import ReadRow
from runner.data.rows.recognise import CONVERSATION, holds
from runner.data.rows.values import BadRow, Message, Row, is_given, listed, parsed, shown


@dataclass(frozen=True)
class Example:
    """One training example: messages to be rendered, or plain text.

    ``messages`` end with the last answer that is trained on, which is also what a model is asked for.
    ``source`` is its row number, from 1 (in JSONL: its line), ``place`` what comes before it in a message.
    ``tools`` are the tools it may call, as JSON schemas. ``rejected`` is the conversation with the worse
    answer, where ``messages`` has the better one. ``label`` is the class of the text, or whether the answer
    was liked.
    """

    source: int
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    place: str = "row "
    rejected: tuple[Message, ...] = ()
    label: str | bool | None = None

    @property
    def where(self) -> str:
        """File and line or row, for messages."""
        return f"{self.place}{self.source}"

    @property
    def answer(self) -> str:
        """The last answer that is trained on, or the whole text."""
        return self.text if self.text is not None else str(self.messages[-1]["content"])

    @property
    def empty(self) -> bool:
        """Whether the last answer is empty."""
        if self.text is not None:
            return not shows_something(self.answer)
        return not has_content(self.messages[-1])


def to_example(
    row: Row, source: int, row_format: str, place: str = "row ", kind: Kind = "completion"
) -> Example:
    """Normalise one row of a known format. Raises ``BadRow``.

    A ``ReadRow`` remembers what was read of it, and what may be wrong with it.
    """
    row = ReadRow.of(row)
    if row_format == "text":
        return Example(source, text=text_of(row, "text"), place=place)
    if row_format == "classification":
        return Example(source, text=text_of(row, "text"), label=class_of(row), place=place)
    if row_format == "preference" and kind != "completion":
        chosen, rejected = (_up_to_trained(side, row) for side in _pair(row))
        return Example(source, messages=chosen, rejected=rejected, tools=tools_of(row), place=place)
    if row_format == "feedback":
        messages = _up_to_trained(_feedback(row), row)
        return Example(source, messages=messages, tools=tools_of(row), place=place, label=liked(row))
    messages = _CONVERTERS[row_format](row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if all(message.get("weight") == 0 for message in answers):
        masked = ": all are masked (weight, loss or train)" if answers else ""
        raise BadRow(f"has no assistant message to train on{masked}")
    messages = _up_to_trained(_up_to_answer(messages, row), row)
    return Example(source, messages=messages, tools=tools_of(row), place=place)


def prompt_messages(row: Row) -> list[Message]:
    """The messages of a row that asks: a conversation, an instruction or a prompt; an answer is left out.

    Raises ``BadRow``.
    """
    row = ReadRow.of(row)
    if (key := _conversation_key(row)) is not None:
        messages = messages_of(row, key)
    elif row.get("instruction") is not None:
        messages = _alpaca_prompt(row)
    else:
        messages = [*system_turn(row), *messages_of(row, "prompt", "user")]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise BadRow("asks nothing")
    return messages


def unpaired(example: Example) -> list[Example]:
    """The two answers of a preference pair, one liked and one not; anything else as it is."""
    if not example.rejected:
        return [example]
    liked = replace(example, rejected=(), label=True)
    return [liked, replace(liked, messages=example.rejected, label=False)]


def _pair(row: ReadRow) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversations with the chosen and the rejected answer; what they share is only read."""
    chosen, rejected = (_up_to_answer(_preference(row, side), row) for side in ("chosen", "rejected"))
    same = (_unmarked(a) == _unmarked(b) for a, b in zip(chosen, rejected, strict=False))
    shared = next((index for index, equal in enumerate(same) if not equal), min(len(chosen), len(rejected)))
    if shared == len(chosen) == len(rejected):  # two equal answers, which the reader of the rows counts
        shared -= 1
    # a mark may stand with one of them alone
    prompt = _only_read([{**b, **a} for a, b in zip(chosen[:shared], rejected[:shared], strict=True)])
    for side, messages in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if not messages or messages[0]["role"] != "assistant" or not prompt:
            raise BadRow("chosen and rejected are no two answers to the same prompt")
        _require_loss(messages, side)
    return (*prompt, *chosen[shared:]), (*prompt, *rejected[shared:])


def _feedback(row: ReadRow) -> tuple[Message, ...]:
    """A conversation whose answer was liked or not: the completion, or all after the last question."""
    key = "completion" if is_given(row.get("completion")) else _conversation_key(row) or "completion"
    messages = _prompt_completion(row) if key == "completion" else _conversation(row)
    messages = _up_to_answer(messages, row)
    length = len(messages_of(row, "completion", "assistant")) if key == "completion" else 0
    begin = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1) + 1
    if length and messages[-length:][0]["role"] == "assistant":
        begin = len(messages) - length
    answer = messages[begin:]
    _require_loss(answer, key)
    return (*_only_read(messages[:begin]), *answer)


def _require_loss(messages: list[Message], side: str) -> None:
    if any(is_trained(message) for message in messages):
        return
    answers = [message for message in messages if message["role"] == "assistant"]
    if any(map(has_content, answers)):
        raise BadRow(f"the answer in {side!r} is masked (weight, loss or train), so that nothing is trained")
    raise BadRow(f"the answer in {side!r} is empty" if side in CONVERSATION else f"{side!r} is empty")


def _only_read(messages: list[Message]) -> list[Message]:
    """Messages whose answers are marked as the prompt's; the file's own holds for ``train_on=all`` too."""
    return [{**each, "prompt": True} if each["role"] == "assistant" else each for each in messages]


def _unmarked(message: Message) -> Message:
    """A message without the mark of whether it is trained."""
    return {key: value for key, value in message.items() if key != "weight"}


def _up_to_answer(messages: list[Message], row: ReadRow) -> list[Message]:
    """Without what follows the last answer, which can neither be trained nor seen."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise BadRow("has no assistant message to train on")
    if last + 1 < len(messages):
        row.doubts.add("messages after the last answer, which are not read")
    return messages[: last + 1]


def _up_to_trained(messages: Sequence[Message], row: ReadRow) -> tuple[Message, ...]:
    """Without what follows the last answer that is trained on: masked answers, and what they answer."""
    last = max(
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight") != 0 and not message.get("prompt")
    )
    if last + 1 < len(messages):
        row.doubts.add("masked turns after the last answer that is trained on, which are left out")
    return tuple(messages[: last + 1])


def _alpaca(row: ReadRow) -> list[Message]:
    prompt = _alpaca_prompt(row)
    return _answered(row, prompt, "output", [new_message(text_of(row, "output"), "assistant")])


def _alpaca_prompt(row: ReadRow) -> list[Message]:
    instruction, extra = text_of(row, "instruction"), text_of(row, "input", optional=True)
    content = "\n".join(text for text in (instruction, extra) if text.strip()) or instruction
    user = {"role": "user", "content": content, "instruction": instruction, "input": extra}
    return [*system_turn(row), *_history(row), user]


def _history(row: ReadRow) -> list[Message]:
    messages: list[Message] = []
    turns = parsed(row.get("history") or [], "history")
    if not isinstance(turns, (list, tuple)):
        raise BadRow(f"history must be a list of questions with their answers, got {shown(turns)}")
    for number, turn in enumerate(turns):
        if not (isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
            raise BadRow(f"history[{number}] must be a question and its answer, got {shown(turn)}")
        messages += new_message(turn[0], "user"), new_message(turn[1], "assistant")
    return messages


def _prompt_completion(row: ReadRow) -> list[Message]:
    whole = isinstance(row.get("completion"), (list, dict)) and not is_given(row.get("prompt"))
    prompt = [] if whole else messages_of(row, "prompt", "user")
    answer = messages_of(row, "completion", "assistant")
    if whole and answer[0]["role"] not in ("system", "user"):
        raise BadRow(f"has an answer but no prompt; it has {listed(row)}")
    if (prompt or answer)[0]["role"] != "system":
        prompt = [*system_turn(row), *prompt]
    return _answered(row, prompt, "completion", answer)


def _preference(row: ReadRow, side: str = "chosen") -> list[Message]:
    """One answer of a preference pair with its prompt; supervised training learns from the chosen one."""
    prompt, answer = _preference_prompt(row), messages_of(row, side, "assistant")
    if not prompt and answer[0]["role"] == "assistant":
        raise BadRow(f"has an answer but no prompt; it has {listed(row)}")
    if (prompt or answer)[0]["role"] != "system" and answer[0]["role"] != "system":
        prompt = [*system_turn(row), *prompt]
    sides = row.get("chosen"), row.get("rejected")
    if all(repeats(prompt, text) for text in sides):
        row.doubts.add("a prompt that both answers repeat: cut off there")
        answer = [new_message(without_prompt(prompt, answer[0]["content"]), "assistant")]
        return joined(prompt, answer, side)
    return _answered(row, prompt, side, answer)


def _preference_prompt(row: ReadRow) -> list[Message]:
    """What comes before both answers; empty where they are whole conversations."""
    if row.get("instruction") is not None:
        return _alpaca_prompt(row)
    key = "prompt" if row.get("prompt") else _conversation_key(row)
    if key is None:
        return []
    try:
        return messages_of(row, key, "user")
    except BadRow:
        sides = (messages_of(row, side, "assistant")[0]["role"] for side in ("chosen", "rejected"))
        if key == "prompt" or "assistant" in sides:
            raise
        row.doubts.add(f"no messages in {key!r}, which is not read: both answers are whole conversations")
        return []


def _answered(row: ReadRow, prompt: list[Message], key: str, answer: list[Message]) -> list[Message]:
    """A prompt before its answer, which may be the whole conversation."""
    if repeats(prompt, row.get(key)):
        row.doubts.add("an answer that begins with its whole prompt")
    made = joined(prompt, answer, key)
    if prompt and prompt[-1]["role"] == "assistant":
        if answer[0]["role"] == "assistant":
            row.doubts.add("a prompt that ends in an answer, before the answer that is trained")
        elif prompt[-1] not in made:
            row.doubts.add("a prompt that ends in another answer, which is left out")
    return made


def _conversation(row: ReadRow) -> list[Message]:
    key = _conversation_key(row) or next((name for name in CONVERSATION if name in row), "messages")
    messages = messages_of(row, key)
    return messages if messages[0]["role"] == "system" else [*system_turn(row), *messages]


def _conversation_key(row: ReadRow) -> str | None:
    """The column with the conversation; None where all are empty."""
    return next((name for name in CONVERSATION if holds(row, name)), None)


_CONVERTERS = {
    "alpaca": _alpaca,
    "messages": _conversation,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
}
