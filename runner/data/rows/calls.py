"""Tools and the calls of an answer, from the shapes that data sets have them in to one.

A call becomes ``{"type": "function", "function": {"name": str, "arguments": dict}}`` with what else it had.
"""

from __future__ import annotations

from typing import Any

from runner.data.rows.read_row import ReadRow
from runner.data.rows.values import BadRow, is_finite, is_given, listed, parsed, shown


def tools_of(row: ReadRow) -> tuple[dict[str, Any], ...]:
    """The JSON schemas of the tools that a row may call: its ``tools``, or the older ``functions``.

    A list, JSON text of one, or a list of JSON texts; empty text and null are none. Raises ``BadRow``.
    """
    if is_given(tools := _schemas(row, "tools")):
        return tuple(tools)
    functions = _schemas(row, "functions")
    if functions:
        row.doubts.add("functions, which are read as tools")
    return tuple(each if "function" in each else {"type": "function", "function": each} for each in functions)


def calls_of(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The calls of a message: its ``tool_calls``, or the older ``function_call``. Raises ``BadRow``."""
    place = f"{where}.tool_calls"
    calls = _list(item.get("tool_calls"), place, "calls")
    made = [_call(call, f"{place}[{number}]") for number, call in enumerate(calls)]
    place = f"{where}.function_call"
    legacy = parsed(item.get("function_call") or None, place)
    if not is_given(legacy):
        return made
    if not isinstance(legacy, dict):
        raise BadRow(f"{place} must be a call with name and arguments, got {shown(legacy)}")
    call = _call(legacy, place)
    if made and _called(call) not in map(_called, made):
        raise BadRow(f"{where} has tool_calls and another function_call: one of them")
    return made or [call]


def same_calls(one: list[dict[str, Any]] | None, other: list[dict[str, Any]] | None) -> bool:
    """Whether calls are of the same functions with the same arguments, whatever else is written of them."""
    return list(map(_called, one or [])) == list(map(_called, other or []))


def _called(call: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return call["function"]["name"], call["function"]["arguments"]


def _schemas(row: ReadRow, key: str) -> list[dict[str, Any]]:
    schemas = _list(row.get(key), key, "JSON schemas")
    if not is_finite(schemas):
        raise BadRow(f"{key} holds NaN or an infinity, which JSON does not have")
    return schemas


def _list(value: Any, key: str, what: str) -> list[dict[str, Any]]:
    value = parsed(value, key) if is_given(value) else None
    if value is None:
        return []
    items = [parsed(item, f"{key}[{n}]") for n, item in enumerate(value)] if _is_list(value) else [value]
    if not _is_list(value) or not all(isinstance(item, dict) for item in items):
        raise BadRow(f"{key} must be a list of {what}, got {shown(value)}")
    return items


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f"{where} names no function; it has {listed(call)}")
    # Llama 3.1 writes "parameters"
    key = "arguments" if function.get("arguments") is not None else "parameters"
    arguments = function.get(key)
    arguments = parsed(arguments, f"{where}.{key}") if is_given(arguments) else {}
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}.{key} must be an object, got {shown(arguments)}")
    if not is_finite(arguments):
        raise BadRow(f"{where}.{key} holds NaN or an infinity, which JSON does not have")
    rest = {} if "function" not in call else {name: call[name] for name in call if name != "function"}
    named = {name: function[name] for name in function if name not in (key, "arguments", "type", "id")}
    if "function" not in call:
        rest = {name: call[name] for name in ("type", "id") if name in call}
    return {"type": "function", **rest, "function": {**named, "arguments": arguments}}
