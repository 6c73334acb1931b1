"""Row formats: recognise them by their columns and turn every row into messages (or plain text).

Alpaca's user messages also carry ``instruction`` and ``input``, so that a template can keep them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from runner.config.objective import Kind
from runner.data.messages import (
    BadRow,
    Message,
    Row,
    has_content,
    is_trained,
    message_list,
    messages_of,
    new_message,
    parsed,
    shown,
    system_turn,
    text_of,
    tools_of,
)

# What each format needs (any of the alternatives of each part), most specific first.
FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen",), ("rejected",)),
    "feedback": (("prompt",), ("completion",), ("label",)),
    "classification": (("text",), ("label",)),
    "messages": (("messages", "conversations", "conversation"),),
    "alpaca": (("instruction",), ("output",)),
    "prompt_completion": (("prompt",), ("completion",)),
    "text": (("text",),),
}

# What a row may have besides, and all columns that are read.
OPTIONAL = ("system", "input", "history", "tools")
COLUMNS = {*OPTIONAL, *(name for parts in FORMATS.values() for part in parts for name in part)}

# What a recipe learns from, and the formats that hold it: an answer, the better of two answers, answers that
# were liked or not, or the class of a text.
KINDS: dict[Kind, tuple[str, ...]] = {
    "completion": ("preference", "messages", "alpaca", "prompt_completion", "text"),
    "preference": ("preference",),
    "unpaired_preference": ("preference", "feedback"),
    "classification": ("classification",),
}


@dataclass(frozen=True)
class Example:
    """One training example: messages to be rendered, or plain text.

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
        """The last assistant message, or the whole text."""
        return self.text if self.text is not None else str(self.messages[-1]["content"])

    @property
    def empty(self) -> bool:
        """Whether the last answer is empty."""
        return not self.answer.strip() if self.text is not None else not has_content(self.messages[-1])


def recognise(columns: Iterable[str], kind: Kind = "completion") -> str | None:
    """Name the format that a set of column names fits, of those that hold this kind, or None."""
    names = set(columns)
    return next((name for name in FORMATS if name in KINDS[kind] and not missing(name, names)), None)


def missing(row_format: str, columns: Iterable[str]) -> list[str]:
    """The columns that a format needs and that are not there."""
    names = set(columns)
    return [part[0] for part in FORMATS[row_format] if not names & set(part)]


def expected(kind: Kind = "completion") -> str:
    """The formats that hold this kind and their columns, for a message."""
    parts = {name: " + ".join("|".join(part) for part in FORMATS[name]) for name in FORMATS}
    return "; ".join(f"{name}: {columns}" for name, columns in parts.items() if name in KINDS[kind])


def to_example(
    row: Row, source: int, row_format: str, place: str = "row ", kind: Kind = "completion"
) -> Example:
    """Normalise one row of a known format. Raises ``BadRow``."""
    if row_format == "text":
        return Example(source, text=text_of(row, "text"), place=place)
    if row_format == "classification":
        return Example(source, text=text_of(row, "text"), label=_class(row), place=place)
    if row_format == "preference" and kind != "completion":
        chosen, rejected = _pair(row)
        return Example(source, messages=chosen, rejected=rejected, tools=tools_of(row), place=place)
    if row_format == "feedback":
        prompt = [*system_turn(row), *messages_of(row, "prompt", "user")]
        answer = _up_to_answer(messages_of(row, "completion", "assistant"))
        _require_loss(answer, "completion")
        messages = (*_masked(prompt), *answer)
        return Example(source, messages=messages, tools=tools_of(row), place=place, label=_liked(row))
    messages = _CONVERTERS[row_format](row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if all(message.get("weight") == 0 for message in answers):
        raise BadRow("has no assistant message to train on")
    return Example(source, messages=tuple(_up_to_answer(messages)), tools=tools_of(row), place=place)


def prompt_messages(row: Row) -> list[Message]:
    """The messages of a row that asks: a conversation, an instruction or a prompt; an answer is left out.

    Raises ``BadRow``.
    """
    key = next((name for name in FORMATS["messages"][0] if row.get(name)), None)
    if key is not None:
        messages = message_list(row[key], key)
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


def _pair(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversations with the chosen and the rejected answer; what they share is only read."""
    chosen, rejected = (_up_to_answer(_preference(row, side)) for side in ("chosen", "rejected"))
    same = (a == b for a, b in zip(chosen, rejected, strict=False))
    shared = next((index for index, equal in enumerate(same) if not equal), min(len(chosen), len(rejected)))
    if shared == len(chosen) == len(rejected):  # two equal answers, which the reader of the rows counts
        shared -= 1
    prompt = _masked(chosen[:shared])
    for side, messages in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if not messages or messages[0]["role"] != "assistant" or not prompt:
            raise BadRow("chosen and rejected are no two answers to the same prompt")
        _require_loss(messages, side)
    return (*prompt, *chosen[shared:]), (*prompt, *rejected[shared:])


def _require_loss(messages: list[Message], side: str) -> None:
    if not any(is_trained(message) for message in messages):
        raise BadRow(f"{side!r} is empty")


def _masked(messages: list[Message]) -> list[Message]:
    """Messages with their answers masked: by a weight of 0, as OpenAI's format has it."""
    return [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages]


def _up_to_answer(messages: list[Message]) -> list[Message]:
    """Without what follows the last answer, which can neither be trained nor seen."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise BadRow("has no assistant message to train on")
    return messages[: last + 1]


def _liked(row: Row) -> bool:
    value = row.get("label")
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise BadRow(f"'label' must be true or false, got {shown(value)}")
    return known[str(value).lower()]


def _class(row: Row) -> str:
    value = row.get("label")
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise BadRow(f"'label' must be the name or number of a class, got {shown(value)}")
    return str(value).strip()


def _alpaca(row: Row) -> list[Message]:
    return [*_alpaca_prompt(row), {"role": "assistant", "content": text_of(row, "output")}]


def _alpaca_prompt(row: Row) -> list[Message]:
    instruction, extra = text_of(row, "instruction"), text_of(row, "input", optional=True)
    content = f"{instruction}\n{extra}" if extra.strip() else instruction
    user = {"role": "user", "content": content, "instruction": instruction, "input": extra}
    return [*system_turn(row), *_history(row), user]


def _history(row: Row) -> list[Message]:
    messages: list[Message] = []
    for number, turn in enumerate(parsed(row.get("history") or [], "history")):
        if not (isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
            raise BadRow(f"history[{number}] must be a question and its answer, got {shown(turn)}")
        messages += new_message(turn[0], "user"), new_message(turn[1], "assistant")
    return messages


def _prompt_completion(row: Row) -> list[Message]:
    return [
        *system_turn(row),
        *messages_of(row, "prompt", "user"),
        *messages_of(row, "completion", "assistant"),
    ]


def _preference(row: Row, side: str = "chosen") -> list[Message]:
    """One answer of a preference pair with its prompt; supervised training learns from the chosen one."""
    chosen = messages_of(row, side, "assistant")
    if chosen[0]["role"] != "assistant":  # a whole conversation, which begins with its prompt
        return [*([] if chosen[0]["role"] == "system" else system_turn(row)), *chosen]
    if row.get("instruction") is not None:
        return [*_alpaca_prompt(row), *chosen]
    key = next((name for name in ("prompt", *FORMATS["messages"][0]) if row.get(name)), None)
    if key is None:
        raise BadRow(f"has an answer but no prompt; it has {sorted(row)}")
    prompt = messages_of(row, key, "user")
    return [*([] if prompt[0]["role"] == "system" else system_turn(row)), *prompt, *chosen]


def _conversation(row: Row) -> list[Message]:
    named = [name for name in FORMATS["messages"][0] if name in row]
    key = next((name for name in named if row[name] is not None), named[0] if named else "messages")
    messages = message_list(row.get(key), key)
    return messages if messages[0]["role"] == "system" else [*system_turn(row), *messages]


_CONVERTERS = {
    "alpaca": _alpaca,
    "messages": _conversation,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
}
