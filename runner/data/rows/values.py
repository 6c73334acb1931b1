"""Values of a row: parsed from JSON text, checked, and shown in a message."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]

# Lists and objects inside one another. Real rows stay below 20 (the schema of a tool); Python's own JSON
# reader and writer give up at about 1,000, the writer in the middle of a run.
MOST_LEVELS = 100


class BadRow(ValueError):
    """A row that cannot be used; the message says why, the reader adds file and row number."""


class ClassNumber(int):
    """The number of a class in a table that also says what its classes are called, in the order of numbers.

    It is a number to all that wants one, such as whether an answer was liked.
    """

    names: Sequence[str]

    def __new__(cls, number: int, names: Sequence[str]) -> ClassNumber:
        """The number with the ``names`` of all classes."""
        made = super().__new__(cls, number)
        made.names = names
        return made

    @property
    def name(self) -> str:
        """What the table calls the class. Raises ``BadRow`` for -1, with which a row has none."""
        if 0 <= self < len(self.names):
            return self.names[self]
        raise BadRow(f"has the class {int(self)}; those of its file are 0 to {len(self.names) - 1}")


class NotJson(ValueError):
    """Text that cannot be read as JSON: why, in which line of the text (from 1), and what to do."""

    def __init__(self, message: str, line: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.line, self.hint = line, hint


class _Twice(ValueError):
    """An object that names a key twice, of which JSON's own reader would keep the last without a word."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Twice(f"names {twice!r} twice in one object: {shown(made)}")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, and where it ends. Raises ``NotJson``."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise NotJson(f"is not JSON: {error.msg} at column {error.colno}", error.lineno) from error
    except _Twice as error:
        raise NotJson(str(error), text.count("\n", 0, start) + 1, "keep one of them") from error
    except RecursionError as error:
        raise NotJson(_too_deep(), text.count("\n", 0, start) + 1) from error
    except ValueError as error:  # Python turns no more than 4,300 digits into a number
        line = text.count("\n", 0, start) + 1
        raise NotJson("holds a number of more than 4,300 digits", line, "as text, in quotes") from error


def whole_json(text: str) -> Any:
    """The value of a text that is JSON as a whole. Raises ``NotJson``."""
    begin = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = json_value(text, begin)
    if rest := text[end:].lstrip(" \t\r\n"):
        at = len(text) - len(rest)
        column = at - text.rfind("\n", 0, at)
        raise NotJson(f"is not JSON: Extra data at column {column}", text.count("\n", 0, at) + 1)
    return value


def parsed(value: Any, key: str) -> Any:
    """A list as it is, or from JSON text, as which CSV and some Parquet files hold it. Raises ``BadRow``."""
    if not isinstance(value, str):
        return value
    try:
        found = whole_json(value)
    except NotJson as error:
        reason = str(error).replace("is not JSON", "is text that is not JSON", 1)
        raise BadRow(f"{key} {reason}") from error
    check_value(found, key)
    return found


def check_value(value: Any, where: str) -> None:
    """Refuse half surrogates and deep nesting anywhere in a value. Raises ``BadRow`` that names the place."""
    if not _is_sound(value, 0):
        raise BadRow(_fault(value, where, 0))


def _is_sound(value: Any, level: int) -> bool:
    if isinstance(value, str):
        return value.isascii() or _encodes(value)
    if isinstance(value, dict):
        for name in value:  # loops rather than all(...), which takes twice the time
            if isinstance(name, str) and not name.isascii() and not _encodes(name):
                return False
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    if level >= MOST_LEVELS:
        return False
    for item in value:  # noqa: SIM110
        if not _is_sound(item, level + 1):
            return False
    return True


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape half of a character, which no tokenizer can read
        return False
    return True


def _fault(value: Any, where: str, level: int) -> str:
    """What ``check_value`` found: the first fault, with its place."""
    if isinstance(value, str):
        at = next(index for index, character in enumerate(value) if not _encodes(character))
        return f"{where or 'a column name'} holds {value[at]!r}, half of a surrogate pair, at {at}"
    if level >= MOST_LEVELS:
        return f"{where.partition('.')[0].partition('[')[0]} {_too_deep()}"
    if isinstance(value, dict):
        for name, item in value.items():
            place = f"{where}.{printable(name)}" if where else printable(name)
            if not _is_sound(name, level):
                return _fault(name, f"the name {place}", level)
            if not _is_sound(item, level + 1):
                return _fault(item, place, level + 1)
    inner = next(index for index, item in enumerate(value) if not _is_sound(item, level + 1))
    return _fault(value[inner], f"{where}[{inner}]", level + 1)


def _too_deep() -> str:
    return f"is nested deeper than {MOST_LEVELS} levels"


def without_nulls(value: Any) -> Any:
    """Without the keys that are null: a typed table gives each object the keys of all others."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_given(value: Any) -> bool:
    """Whether a value holds anything: null, an empty text, list or object do not."""
    return value is not None and not (isinstance(value, (str, list, tuple, dict)) and not value)


def is_finite(value: Any) -> bool:
    """Whether all numbers in a value are finite: Python's JSON reads NaN, and 1e400 as infinity."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def shown(value: Any) -> str:
    """A value with its type, for a message; null, true and false as JSON has them."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


def listed(names: Iterable[Any], most: int = 12) -> str:
    """Names in order, as a list in a message: all of a few, the first of many."""
    ordered = sorted(map(str, names))
    more = f", ... ({len(ordered):,} in all)" if len(ordered) > most else ""
    return f"[{', '.join(map(repr, ordered[:most]))}{more}]"


def printable(name: Any) -> str:
    """A name of a file's own, escaped where a terminal would not show it as it is."""
    text = str(name)
    text = text if len(text) < 60 else text[:57] + "..."
    return text if text.isprintable() and text else repr(text)
