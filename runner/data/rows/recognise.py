"""The format of a row, recognised by its columns: what each needs, and what it may have besides."""

from __future__ import annotations

from collections.abc import Iterable

from runner.config.objective import Kind
from runner.data.rows.values import Row, is_given

CONVERSATION = ("messages", "conversations", "conversation")
_NO_MESSAGES = ("", "[]", "{}", "null")  # as a table without lists stores them

# What each format needs (any of the alternatives of each part), most specific first.
FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "preference": (("chosen",), ("rejected",)),
    "feedback": (("completion", *CONVERSATION), ("label",)),
    "classification": (("text",), ("label",)),
    "messages": (CONVERSATION,),
    "alpaca": (("instruction",), ("output",)),
    "prompt_completion": (("prompt",), ("completion",)),
    "text": (("text",),),
}

# What a row may have besides, and all columns that are read.
OPTIONAL = ("system", "input", "history", "tools", "functions")
COLUMNS = {*OPTIONAL, *(name for parts in FORMATS.values() for part in parts for name in part)}

# What a recipe learns from, and the formats that hold it: an answer, the better of two answers, answers that
# were liked or not, or the class of a text.
KINDS: dict[Kind, tuple[str, ...]] = {
    "completion": ("preference", "messages", "alpaca", "prompt_completion", "text"),
    "preference": ("preference",),
    "unpaired_preference": ("preference", "feedback"),
    "classification": ("classification",),
}


def recognise(row: Row, kind: Kind = "completion") -> str | None:
    """Name the format that the columns of a row fit, of those that hold this kind, or None.

    Where several do, the first that the row holds anything of: tables that were put together have the columns
    of all formats in each row, null where it is in another. TRL too trains on prompt and completion beside
    messages that are null. Plain text comes last: what another row fills is more than text.
    """
    fits = [name for name in FORMATS if name in KINDS[kind] and not missing(name, row)]
    filled = (name for name in fits if name != "text" and fills(row, name))
    return next(filled, next(iter(fits), None))


def fills(row: Row, row_format: str) -> bool:
    """Whether a row holds anything in the columns that a format needs."""
    return any(holds(row, name) for part in FORMATS[row_format] for name in part)


def holds(row: Row, name: str) -> bool:
    """Whether a column holds anything: null, an empty text and an empty conversation do not."""
    value = row.get(name)
    return is_given(value) and not (
        name in CONVERSATION and isinstance(value, str) and value.strip() in _NO_MESSAGES
    )


def missing(row_format: str, columns: Iterable[str]) -> list[str]:
    """The columns that a format needs and that are not there."""
    names = set(columns)
    return [part[0] for part in FORMATS[row_format] if not names & set(part)]


def expected(kind: Kind = "completion") -> str:
    """The formats that hold this kind and their columns, for a message."""
    parts = {name: " + ".join("|".join(part) for part in FORMATS[name]) for name in FORMATS}
    return "; ".join(f"{name}: {columns}" for name, columns in parts.items() if name in KINDS[kind])
