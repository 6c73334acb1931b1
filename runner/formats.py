"""Row formats: recognise them by their columns and turn every row into messages (or plain text).

A message is ``{"role": system|user|assistant|tool, "content": str}``. Alpaca's user messages also carry
``instruction`` and ``input``, so that an Alpaca template can keep them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    "feedback": (("prompt",), ("completion",), ("label",)),
    "classification": (("text",), ("label",)),
    "messages": (("messages", "conversations", "conversation"),),
    "alpaca": (("instruction",), ("output",)),
    "prompt_completion": (("prompt",), ("completion",)),
    "text": (("text",),),
}

# What a recipe learns from, and the formats that hold it: an answer, the better of two answers, answers that
# were liked or not, or the class of a text.
Kind = Literal["answers", "pairs", "feedback", "labels"]
KINDS: dict[Kind, tuple[str, ...]] = {
    "answers": ("preference", "messages", "alpaca", "prompt_completion", "text"),
    "pairs": ("preference",),
    "feedback": ("preference", "feedback"),
    "labels": ("classification",),
}

# What a message may say besides its content; templates know these by the same names.
_EXTRAS = ("tool_calls", "name", "tool_call_id", "reasoning_content", "thinking")


class BadRow(ValueError):
    """A row that cannot be used; the message says why, the reader adds file and row number."""


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
        """Whether the last answer says nothing."""
        return not self.answer.strip() if self.text is not None else not says_something(self.messages[-1])


def says_something(message: Message) -> bool:
    """Whether a message has words or calls a tool."""
    return bool(message["content"].strip() or message.get("tool_calls"))


def is_trained(message: Message) -> bool:
    """Whether a message can be trained on: an answer with words or calls, not excluded by a weight of 0."""
    return message["role"] == "assistant" and message.get("weight") != 0 and says_something(message)


def recognise(columns: Iterable[str], kind: Kind = "answers") -> str | None:
    """Name the format that a set of column names fits, of those that hold this kind, or None."""
    names = set(columns)
    return next((name for name in FORMATS if name in KINDS[kind] and not missing(name, names)), None)


def missing(row_format: str, columns: Iterable[str]) -> list[str]:
    """The columns that a format needs and that are not there."""
    names = set(columns)
    return [part[0] for part in FORMATS[row_format] if not names & set(part)]


def expected(kind: Kind = "answers") -> str:
    """The formats that hold this kind and their columns, for a message."""
    parts = {name: " + ".join("|".join(part) for part in FORMATS[name]) for name in FORMATS}
    return "; ".join(f"{name}: {columns}" for name, columns in parts.items() if name in KINDS[kind])


def to_example(
    row: Row, source: int, row_format: str, place: str = "row ", kind: Kind = "answers"
) -> Example:
    """Normalise one row of a known format. Raises ``BadRow``."""
    if row_format == "text":
        return Example(source, text=_text(row, "text"), place=place)
    if row_format == "classification":
        return Example(source, text=_text(row, "text"), label=_class(row), place=place)
    if row_format == "preference" and kind != "answers":
        chosen, rejected = _pair(row)
        return Example(source, messages=chosen, rejected=rejected, tools=_tools(row), place=place)
    if row_format == "feedback":
        prompt = [*_system(row), *_side(row, "prompt", "user")]
        answer = _up_to_answer(_side(row, "completion", "assistant"))
        _refuse_silence(answer, "completion")
        messages = (*_only_read(prompt), *answer)
        return Example(source, messages=messages, tools=_tools(row), place=place, label=_liked(row))
    messages = _CONVERTERS[row_format](row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if all(message.get("weight") == 0 for message in answers):
        raise BadRow("has no assistant message to train on")
    return Example(source, messages=tuple(_up_to_answer(messages)), tools=_tools(row), place=place)


def prompt_messages(row: Row) -> list[Message]:
    """The messages of a row that asks: a conversation, an instruction or a prompt; an answer is left out.

    Raises ``BadRow``.
    """
    key = next((name for name in FORMATS["messages"][0] if row.get(name)), None)
    if key is not None:
        messages = _messages(row[key], key)
    elif row.get("instruction") is not None:
        messages = _alpaca_prompt(row)
    else:
        messages = [*_system(row), *_side(row, "prompt", "user")]
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
    prompt = _only_read(chosen[:shared])
    for side, messages in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if not messages or messages[0]["role"] != "assistant" or not prompt:
            raise BadRow("chosen and rejected are no two answers to the same prompt")
        _refuse_silence(messages, side)
    return (*prompt, *chosen[shared:]), (*prompt, *rejected[shared:])


def _refuse_silence(messages: list[Message], side: str) -> None:
    if not any(is_trained(message) for message in messages):
        raise BadRow(f"{side!r} says nothing")


def _only_read(messages: list[Message]) -> list[Message]:
    """Messages with their answers marked as not to be learnt."""
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
        raise BadRow(f"'label' must be true or false, got {_shown(value)}")
    return known[str(value).lower()]


def _class(row: Row) -> str:
    value = row.get("label")
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise BadRow(f"'label' must be the name or number of a class, got {_shown(value)}")
    return str(value).strip()


def _alpaca(row: Row) -> list[Message]:
    return [*_alpaca_prompt(row), {"role": "assistant", "content": _text(row, "output")}]


def _alpaca_prompt(row: Row) -> list[Message]:
    instruction, extra = _text(row, "instruction"), _text(row, "input", optional=True)
    content = f"{instruction}\n{extra}" if extra.strip() else instruction
    user = {"role": "user", "content": content, "instruction": instruction, "input": extra}
    return [*_system(row), *_history(row), user]


def _history(row: Row) -> list[Message]:
    messages: list[Message] = []
    for number, turn in enumerate(_parsed(row.get("history") or [], "history")):
        if not (isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
            raise BadRow(f"history[{number}] must be a question and its answer, got {_shown(turn)}")
        messages += _said(turn[0], "user"), _said(turn[1], "assistant")
    return messages


def _prompt_completion(row: Row) -> list[Message]:
    return [*_system(row), *_side(row, "prompt", "user"), *_side(row, "completion", "assistant")]


def _preference(row: Row, side: str = "chosen") -> list[Message]:
    """One answer of a preference pair with its prompt; supervised training learns from the chosen one."""
    chosen = _side(row, side, "assistant")
    if chosen[0]["role"] != "assistant":  # a whole conversation, which begins with its prompt
        return [*([] if chosen[0]["role"] == "system" else _system(row)), *chosen]
    if row.get("instruction") is not None:
        return [*_alpaca_prompt(row), *chosen]
    key = next((name for name in ("prompt", *FORMATS["messages"][0]) if row.get(name)), None)
    if key is None:
        raise BadRow(f"has an answer but no prompt; it has {sorted(row)}")
    prompt = _side(row, key, "user")
    return [*([] if prompt[0]["role"] == "system" else _system(row)), *prompt, *chosen]


def _conversation(row: Row) -> list[Message]:
    named = [name for name in FORMATS["messages"][0] if name in row]
    key = next((name for name in named if row[name] is not None), named[0] if named else "messages")
    messages = _messages(row.get(key), key)
    return messages if messages[0]["role"] == "system" else [*_system(row), *messages]


def _system(row: Row) -> list[Message]:
    text = _text(row, "system", optional=True)
    return [_said(text, "system")] if text.strip() else []


def _side(row: Row, key: str, role: str) -> list[Message]:
    """One side of a pair: a string, one message, or a list of messages."""
    value = row.get(key)
    if isinstance(value, dict):
        value = [value]
    return _messages(value, key) if isinstance(value, list) else [_said(_text(row, key), role)]


def _said(text: str, role: str) -> Message:
    return {"role": role, "content": _sound(text, role)}


def _messages(value: Any, key: str) -> list[Message]:
    value = _parsed(value, key)
    if not isinstance(value, (list, tuple)) or not len(value):
        raise BadRow(f"{key} must be a list of messages, got {_shown(value)}")
    return [_message(item, f"{key}[{number}]") for number, item in enumerate(value)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be a message, got {_shown(item)}")
    role, content = (
        next((item[name] for name in names if item.get(name) is not None), None)
        for names in (("role", "from"), ("content", "value"))
    )
    if role is None:
        raise BadRow(f"{where} has no role; it has {sorted(map(str, item))}; {nearest('role', item)}")
    known = ROLES.get(str(role).lower())
    if known is None:
        raise BadRow(f"{where} has the unknown role {role!r}; {nearest(role, ROLES)}")
    kept = {name: _without_nulls(item[name]) for name in _EXTRAS if item.get(name)}
    if content is None and "tool_calls" in kept:
        content = ""
    if isinstance(content, list):  # parts, as multimodal chats have them; only text can be trained on here
        texts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
        content = "".join(map(str, texts)) if len(texts) == len(content) > 0 else content
    if not isinstance(content, str):
        raise BadRow(f"{where} has no text content, got {_shown(content)}")
    if item.get("weight") == 0:  # OpenAI's mark of an answer that is read but not learnt
        kept["weight"] = 0
    return {"role": known, "content": _sound(content, where), **kept}


def _tools(row: Row) -> tuple[dict[str, Any], ...]:
    tools = _without_nulls(_parsed(row.get("tools") or [], "tools"))
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"tools must be a list of JSON schemas, got {_shown(tools)}")
    return tuple(tools)


def _parsed(value: Any, key: str) -> Any:
    """A list as it is, or from JSON text, as which CSV and some Parquet files hold it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRow(f"{key} is text that is not JSON: {error.msg} at column {error.colno}") from error


def _without_nulls(value: Any) -> Any:
    """Drop empty keys: a typed table gives each object the keys of all others, as null."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def _text(row: Row, key: str, optional: bool = False) -> str:
    value = row.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise BadRow(f"has no {key!r}" if key not in row else f"has null in {key!r}")
    if not isinstance(value, str):
        raise BadRow(f"{key!r} must be text, got {_shown(value)}")
    return _sound(value, key)


def _sound(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a character, which no tokenizer can read
        broken = text[error.start]
        raise BadRow(f"{where} holds {broken!r}, half of a surrogate pair, at {error.start}") from error
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


_CONVERTERS = {
    "alpaca": _alpaca,
    "messages": _conversation,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
}
