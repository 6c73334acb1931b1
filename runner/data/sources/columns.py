"""The columns of a file: given other names, found to fit no format, and named in a message."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Any

from runner.config.objective import Kind
from runner.core.errors import nearest
from runner.core.hydra_quoting import hydra_key
from runner.data.rows.recognise import COLUMNS, FORMATS, KINDS, expected, fills, missing, recognise
from runner.data.rows.values import BadRow, Row, is_given, listed

_NAMES = sorted({name for parts in FORMATS.values() for part in parts for name in part})
_COMPARED = 100  # columns whose names are compared with right ones: of 20,000 it would take a minute
# Columns with an answer: a row that has one is no plain text, whatever else it has.
_ANSWERS = ("completion", "output", "chosen", "rejected")
# How columns are given the names of what a recipe learns from.
_EXAMPLES: dict[Kind, str] = {
    "completion": "question: prompt, answer: completion",
    "preference": "better: chosen, worse: rejected",
    "unpaired_preference": "question: prompt, answer: completion, liked: label",
    "classification": "review: text, topic: label",
}


def renamed(row: dict[str, Any], columns: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """A row under the format's names, and the columns that had to give way to a mapped one."""
    if not columns:
        return row, []
    taken = {columns[name] for name in row if name in columns}
    kept = {name: value for name, value in row.items() if name not in columns and name not in taken}
    displaced = [name for name in row if name in taken and name not in columns and is_given(row[name])]
    return kept | {columns[name]: value for name, value in row.items() if name in columns}, displaced


def mapping_issue(columns: dict[str, str], found: Iterable[str]) -> tuple[str, str] | None:
    """What is wrong with a mapping for a file that has the columns ``found``, and what to do."""
    targets = list(columns.values())
    absent = [name for name in columns if name not in found]
    if absent:
        message = f"columns maps {absent[0]!r}, which the file lacks; it has {listed(found)}"
        if columns[absent[0]] in found and absent[0] in COLUMNS:
            return message, f"the file's name comes first: {{{columns[absent[0]]}: {absent[0]}}}"
        return message, nearest(absent[0], islice(found, _COMPARED))
    if unknown := [target for target in targets if target not in COLUMNS]:
        return f"columns maps to {unknown[0]!r}, which no format reads", nearest(unknown[0], COLUMNS, 20)
    if twice := [target for target in targets if targets.count(target) > 1]:
        return f"columns maps two columns to {twice[0]!r}", "keep one of them"
    return None


def format_issue(
    row_format: str, given: bool, found: dict[str, None], names: dict[str, None], first: Row, kind: Kind
) -> tuple[str, str] | None:
    """Why the columns ``found`` (``names``, when they are renamed) fit no format or not the ``given`` one."""
    if not row_format:
        return f"the columns {listed(first)} fit no format", suggested(first, kind)
    if given and (lost := missing(row_format, names)):
        message = f"has no {lost[0]!r}, which the format {row_format!r} needs; it has {listed(found)}"
        other = recognise(dict.fromkeys(names, "given"), kind)
        return message, f"they fit data.format={other}" if other else suggested(found, kind)
    answers = [name for name in _ANSWERS if name in first]
    if row_format == "text" and not given and answers:
        message = f"has 'text' and {answers[0]!r}, which are of two formats; it has {listed(first)}"
        hint = "data.format=text trains on 'text' alone; 'data.columns={text: prompt}' makes it the question"
        return message, hint
    return None


def suggested(columns: Iterable[str], kind: Kind) -> str:
    """A mapping of misspelt columns to the nearest right names, what the recipe wants, or how to map."""
    columns = list(columns)
    compared = islice(columns, _COMPARED)
    close = {column: get_close_matches(column.lower(), _NAMES, n=1, cutoff=0.75) for column in compared}
    pairs = [
        f"{hydra_key(column)}: {match[0]}" for column, match in close.items() if match and match[0] != column
    ]
    if pairs:
        return f"did you mean 'data.columns={{{', '.join(pairs)}}}'? {expected(kind)}"
    others = [name for name in FORMATS if name not in KINDS[kind] and not missing(name, columns)]
    if others:
        return f"the format {others[0]!r} is of other recipes; this one wants {expected(kind)}"
    return f"map them, as in 'data.columns={{{_EXAMPLES[kind]}}}'; {expected(kind)}"


def explain(row: Row, row_format: str, given: bool, kind: Kind, error: BadRow) -> str:
    """Why a row cannot be used, where the reason may be that it is in another format than the file."""
    if not row_format:
        return str(error)
    lost, other = missing(row_format, row), recognise(row, kind)
    if other not in (None, row_format) and (lost or not fills(row, row_format)):
        read = "is read as" if given else "the file began in"
        return f"is in the format {other!r}, but {read} {row_format!r}: one format a file"
    if lost:
        close = get_close_matches(lost[0], islice(row, _COMPARED), n=1)
        return f"has no {lost[0]!r}; it has {listed(row)}" + (f"; is it {close[0]!r}?" if close else "")
    if "text" in KINDS[kind] and not fills(row, row_format) and fills(row, "text"):
        return f"{error}; data.format=text reads its 'text'"
    return str(error)
