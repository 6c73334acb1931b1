"""Messages of a row: roles under the names that data sets use for them, words and tools, each checked.

A message is ``{"role": system|user|assistant|tool, "content": str}``.
"""

from __future__ import annotations

import json
from typing import Any

from runner.core.errors import nearest

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

# Further keys of a message; chat templates read them under the same names.
_EXTRAS = ("tool_calls", "name", "tool_call_id", "reasoning_content", "thinking")


class BadRow(ValueError):
    """A row that cannot be used; the message says why, the reader adds file and row number."""


def has_content(message: Message) -> bool:
    """Whether a message has text or calls a tool."""
    return bool(message["content"].strip() or message.get("tool_calls"))


def is_trained(message: Message) -> bool:
    """Whether a message gets loss: an answer with text or tool calls, not masked by a weight of 0."""
    return message["role"] == "assistant" and message.get("weight") != 0 and has_content(message)


def system_turn(row: Row) -> list[Message]:
    """The row's own system prompt as a message; empty without one. Raises ``BadRow``."""
    text = text_of(row, "system", optional=True)
    return [new_message(text, "system")] if text.strip() else []


def messages_of(row: Row, key: str, role: str) -> list[Message]:
    """The messages in a column: a string (a message of that role), one message, or a list of messages."""
    value = row.get(key)
    if isinstance(value, dict):
        value = [value]
    return message_list(value, key) if isinstance(value, list) else [new_message(text_of(row, key), role)]


def new_message(text: str, role: str) -> Message:
    """A message with this text, which is checked."""
    return {"role": role, "content": _sound(text, role)}


def message_list(value: Any, key: str) -> list[Message]:
    """A list of messages, as it is or as JSON text. Raises ``BadRow``."""
    value = parsed(value, key)
    if not isinstance(value, (list, tuple)) or not len(value):
        raise BadRow(f"{key} must be a list of messages, got {shown(value)}")
    return [_message(item, f"{key}[{number}]") for number, item in enumerate(value)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be a message, got {shown(item)}")
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
        raise BadRow(f"{where} has no text content, got {shown(content)}")
    weight = item.get("weight")  # 0 is OpenAI's mark of an answer that is masked
    if weight not in (None, 0, 1):
        raise BadRow(f"{where} has the weight {shown(weight)}; allowed: 0 (only read) or 1 (learnt)")
    if weight == 0:
        kept["weight"] = 0
    return {"role": known, "content": _sound(content, where), **kept}


def tools_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The JSON schemas of the tools that a row may call. Raises ``BadRow``."""
    tools = _without_nulls(parsed(row.get("tools") or [], "tools"))
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"tools must be a list of JSON schemas, got {shown(tools)}")
    return tuple(tools)


def parsed(value: Any, key: str) -> Any:
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


def text_of(row: Row, key: str, optional: bool = False) -> str:
    """The text in a column; empty where it is missing and ``optional``. Raises ``BadRow``."""
    value = row.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise BadRow(f"has no {key!r}" if key not in row else f"has null in {key!r}")
    if not isinstance(value, str):
        raise BadRow(f"{key!r} must be text, got {shown(value)}")
    return _sound(value, key)


def _sound(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a character, which no tokenizer can read
        broken = text[error.start]
        raise BadRow(f"{where} holds {broken!r}, half of a surrogate pair, at {error.start}") from error
    return text


def shown(value: Any) -> str:
    """A value with its type, for a message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
