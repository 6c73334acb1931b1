"""Messages of a row: roles under the names that data sets use for them, words and calls, each checked.

A message is ``{"role": system|user|assistant|tool, "content": str}``. An answer may have ``tool_calls`` (a
list of ``{"type": "function", "function": {"name": str, "arguments": dict}}``), and ``prompt``: true where it
only leads to the answers of a pair; any message a ``weight`` of 0, which masks it, and the keys ``name``,
``tool_call_id``, ``reasoning_content`` and ``thinking``.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import get_close_matches
from typing import Any

from runner.core.errors import nearest
from runner.data.rows.calls import calls_of
from runner.data.rows.content import text_of_parts
from runner.data.rows.flags import message_flag
from runner.data.rows.read_row import ReadRow
from runner.data.rows.values import BadRow, Message, Row, is_given, listed, parsed, shown

__all__ = ["BadRow", "Message", "Row"]

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
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# Further keys of a message; chat templates read them under the same names. All but the id are text.
_EXTRAS = ("name", "tool_call_id", "reasoning_content", "thinking")
_BEGINS = re.compile(r"\s*(\[\s*)?\{\s*\"(role|from|content|value)\"")
_UNSEEN = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # Unicode's categories of control, format and space
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", *_EXTRAS}


def has_content(message: Message) -> bool:
    """Whether a message has text or calls a tool."""
    return bool(shows_something(message["content"]) or message.get("tool_calls"))


def shows_something(text: str) -> bool:
    """Whether any character of a text can be seen: spaces, joiners, marks of direction cannot."""
    text = text.strip()
    return text[:1].isalnum() or any(unicodedata.category(each) not in _UNSEEN for each in text)


def is_trained(message: Message) -> bool:
    """Whether a message gets loss: an answer with text or tool calls, not masked, and not of a prompt."""
    masked = message.get("weight") == 0 or message.get("prompt")
    return message["role"] == "assistant" and not masked and has_content(message)


def system_turn(row: ReadRow) -> list[Message]:
    """The row's own system prompt as a message; empty without one. Raises ``BadRow``."""
    text = text_of(row, "system", optional=True)
    return [new_message(text, "system")] if text.strip() else []


def messages_of(row: ReadRow, key: str, role: str | None = None) -> list[Message]:
    """The messages in a column: a list of messages, as it is or as JSON text, or one message.

    With a ``role`` a text is a message of that role instead. Raises ``BadRow``.
    """
    value = row.get(key)
    if role is not None and (messages := _as_json_text(value, row)):
        row.doubts.add(f"messages as JSON text in {key!r}, which are read as messages")
        value = messages
    if isinstance(value, dict):
        value = _transposed(value) or [value]
        if role is not None and isinstance(value[0], dict) and not {"role", "from"} & value[0].keys():
            expected = "text, or messages with role and content; JSON as an answer is text, in quotes"
            raise BadRow(f"{key!r} must be {expected}; got an object with {listed(value[0])}")
    if role is not None and not isinstance(value, (list, tuple)):
        return [new_message(text_of(row, key), role)]
    value = parsed(value, key)
    if not isinstance(value, (list, tuple)) or not len(value):
        raise BadRow(f"{key} must be a list of messages, got {shown(value)}")
    return [_message(item, f"{key}[{number}]", row) for number, item in enumerate(value)]


def new_message(text: str, role: str) -> Message:
    """A message with this text."""
    return {"role": role, "content": text}


def _as_json_text(value: Any, row: ReadRow) -> list[Any] | None:
    """The messages that a text holds as JSON, as tables without lists store them; None for other text."""
    if not isinstance(value, str) or not _BEGINS.match(value):
        return None
    try:
        found = parsed(value, "")
    except BadRow:
        row.doubts.add("a text that begins as messages in JSON do, and is none")
        return None
    messages = [found] if isinstance(found, dict) else found
    whole = all(
        isinstance(item, dict) and {"role", "from"} & item.keys() and {"content", "value"} & item.keys()
        for item in messages
    )
    return messages if whole else None


def _transposed(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The messages of an object of equally long lists, as ``datasets`` once wrote a sequence of objects."""
    columns = list(value.values())
    if not columns or not all(isinstance(column, (list, tuple)) for column in columns):
        return None
    if len({len(column) for column in columns}) != 1:
        return None
    return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]


def _message(item: Any, where: str, row: ReadRow) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be a message, got {shown(item)}")
    role = _one_of(item, ("role", "from"), where)
    if role is None:
        raise BadRow(f"{where} has no role; it has {listed(item)}{_hint('role', item)}")
    known = ROLES.get(str(role).lower())
    if known is None:
        raise BadRow(f"{where} has the unknown role {role!r}; {nearest(role, ROLES)}")
    kept: dict[str, Any] = {name: item[name] for name in _EXTRAS if item.get(name)}
    for name, value in kept.items():
        if name != "tool_call_id" and not isinstance(value, str):
            raise BadRow(f"{where}.{name} must be text, got {shown(value)}")
    calls = calls_of(item, where)
    if calls and known != "assistant":
        raise BadRow(f"{where} has calls, and the role {role!r}; only an assistant calls tools")
    if calls:
        kept["tool_calls"] = calls
    content = _one_of(item, ("content", "value"), where)
    if isinstance(content, (list, tuple)) and content:
        content = text_of_parts(content, f"{where}.content", row)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        has = f"; it has {listed(item)}{_hint('content', item)}" if content is None else ""
        raise BadRow(f"{where} has no text content, got {shown(content)}{has}")
    trained, flags = message_flag(item, where)
    if trained is False:
        kept["weight"] = 0
    elif trained and known != "assistant":
        row.doubts.add(f"a message that is no answer and has {sorted(flags)[0]!r}: it is not trained")
    row.unread_keys.update(
        str(name) for name, value in item.items() if name not in _READ | flags and is_given(value)
    )
    return {"role": known, "content": content, **kept}


def _one_of(item: dict[str, Any], names: tuple[str, str], where: str) -> Any:
    """The value under one of two names for the same thing; None if neither is there."""
    given = [item[name] for name in names if item.get(name) is not None]
    if len(given) == 2 and given[0] != given[1] and not _same_role(names, given):
        said = f"{names[0]} {shown(given[0])} and the {names[1]} {shown(given[1])}"
        raise BadRow(f"{where} has the {said}: one of them")
    return given[0] if given else None


def _same_role(names: tuple[str, str], given: list[Any]) -> bool:
    roles = {ROLES.get(str(value).lower()) for value in given}
    return names[0] == "role" and len(roles) == 1 and None not in roles


def _hint(name: str, item: dict[str, Any]) -> str:
    """The key that may be meant, or what is expected."""
    others = [str(key).lower() for key in item if key not in _READ]
    close = get_close_matches(name, others, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; a message has role and content, or from and value"


def text_of(row: ReadRow, key: str, optional: bool = False) -> str:
    """The text in a column; empty where it is missing and ``optional``. Raises ``BadRow``."""
    value = row.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise BadRow(f"has no {key!r}" if key not in row else f"has null in {key!r}")
    if not isinstance(value, str):
        raise BadRow(f"{key!r} must be text, got {shown(value)}")
    return value
