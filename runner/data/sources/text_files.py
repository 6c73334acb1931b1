"""Rows of JSON, JSONL, CSV and TSV files.

Only a JSON array is held in memory as a whole; everything else is read row by row.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from runner.core.errors import Issue
from runner.core.file_kinds import text_lines
from runner.data.rows.values import NotJson, Row, json_value, listed, shown, whole_json

_CELL_LIMIT = 2**31 - 1  # characters; the csv module's own limit is 128 Ki, less than a long conversation
_MARK = b"\xef\xbb\xbf"  # the byte order mark, with which some editors begin UTF-8
_SPACE = " \t\r\n"
_SEPARATORS = (",", ";", "\t", "|")
_SPACED_QUOTE = re.compile(r'\s+"')
_SAMPLE = 50  # rows by which the separator of a table is recognised
# The csv module's words, which are about its own arguments, in ours.
_CSV_ERRORS = {
    "new-line character seen": "a line ends with CR alone, or a cell that holds one is not in quotes",
    "line contains NUL": "holds a NUL character",
}

# A row, or why it is none, with its number from 1.
Rows = Iterable[tuple[int, Row | Issue]]


def json_rows(file: Path) -> tuple[str, Rows]:
    """What comes before a row's number in a message, and the rows of JSON or JSONL.

    The content tells which, as files named .json often hold JSONL; a lone brace opens an object over many
    lines.
    """
    begins = _first_line(file)
    if begins.startswith(b"[") or begins == b"{":
        return f"{file}, row ", _array_rows(file)
    return f"{file}:", _jsonl_rows(file)


def _first_line(file: Path) -> bytes:
    with file.open("rb") as stream:
        lines = (line.removeprefix(_MARK).strip() for line in stream)
        return next((line for line in lines if line), b"")


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    for number, line in text_lines(file):
        if isinstance(line, Issue):
            yield number, line
        elif line.strip():
            yield number, _json_row(file, number, line)


def _json_row(file: Path, number: int, line: str) -> Row | Issue:
    try:
        row = whole_json(line)
    except NotJson as error:
        return Issue(f"{file}:{number}", str(error), error.hint)
    if isinstance(row, dict):
        return row
    return Issue(f"{file}:{number}", f"must be an object, got {shown(row)}")


def _array_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    """The rows of a JSON array, parsed one after another, so that a fault is that of one row."""
    lines = [line for _, line in text_lines(file)]
    broken = [line for line in lines if isinstance(line, Issue)]
    if broken:
        yield from enumerate(broken, start=1)
        return
    text = "".join(map(str, lines))
    del lines
    at, number = _skip(text, 0), 0
    if not text.startswith("[", at):
        yield 0, _no_list(file, text)
        return
    at = _skip(text, at + 1)
    try:
        while not text.startswith("]", at) or number:
            number += 1
            row, at = json_value(text, at)
            wrong = Issue(f"{file}, row {number}", f"must be an object, got {shown(row)}")
            yield number, row if isinstance(row, dict) else wrong
            at = _skip(text, at)
            if text.startswith("]", at):
                break
            if not text.startswith(",", at):
                raise _syntax(text, at, "Expecting ',' delimiter")
            at = _skip(text, at + 1)
        if text[at + 1 :].strip(_SPACE):
            raise _syntax(text, _skip(text, at + 1), "Extra data")
    except NotJson as error:
        syntax = str(error).startswith("is not JSON")
        place = f"{file}:{error.line}" if syntax else f"{file}, row {number}"
        yield number, Issue(place, str(error), error.hint)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _syntax(text: str, at: int, message: str) -> NotJson:
    column = at - text.rfind("\n", 0, at)
    return NotJson(f"is not JSON: {message} at column {column}", text.count("\n", 0, at) + 1)


def _no_list(file: Path, text: str) -> Issue:
    try:
        found = whole_json(text)
    except NotJson as error:
        return Issue(f"{file}:{error.line}", str(error), error.hint)
    message = f"holds one object with the keys {listed(found)}, not a list of rows"
    return Issue(str(file), message, "an object a line, or all of them in [ ]")


def csv_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    """The rows of a table as text, whatever separates its cells."""
    broken = False
    for number, line in text_lines(file):  # first, as a row may stand on many lines
        if isinstance(line, Issue):
            yield number, line
            broken = True
    if broken:
        return
    between = separator(file)
    reader = _reader(file, between, skips_spaces(file, between))
    header: list[str] = []
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = [name.strip() for name in cells]
                if twice := [name for name, count in Counter(header).items() if count > 1]:
                    message = f"the header names the column {twice[0]!r} twice"
                    yield 0, Issue(f"{file}:{reader.line_num}", message, "rename one of them")
                    return
                continue
            number += 1
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                message = f"has {len(cells)} cells, but the header names {len(header)} columns"
                spaced = any(_SPACED_QUOTE.match(cell) for cell in cells)
                hint = "no space before a quote" if spaced else "quote cells that hold separators"
                yield number, Issue(f"{file}:{reader.line_num}", message, hint)
    except csv.Error as error:
        reason = next((ours for words, ours in _CSV_ERRORS.items() if words in str(error)), str(error))
        yield number, Issue(f"{file}:{reader.line_num}", f"is not CSV: {reason}")


def separator(file: Path) -> str:
    """What separates the cells of a table: of what splits its header, what splits most rows alike.

    Of equals it is that of the file's ending: a comma, or a tab for ``.tsv``.
    """
    usual = usual_separator(file)
    fits = {other: _fit(file, other) for other in sorted(_SEPARATORS, key=lambda other: other != usual)}
    best = max(fits, key=lambda other: fits[other])
    return best if fits[best] > 0 else usual


def skips_spaces(file: Path, between: str) -> bool:
    """Whether the spaces behind a separator belong to no cell: where a name of the header begins with one.

    A quote behind such a space would not be one, but a part of the text.
    """
    header = next(_sample(file, between), [])
    return any(name[:1] == " " and name.strip() for name in header[1:])


def quoted_in_vain(file: Path, between: str) -> str:
    """The first cell of a table's first rows whose quotes a space before them makes part of the text."""
    cells = (cell for row in _sample(file, between) for cell in row)
    return next((cell for cell in cells if _SPACED_QUOTE.match(cell) and cell.rstrip()[-1] == '"'), "")


def usual_separator(file: Path) -> str:
    """The separator that a file's ending names."""
    return "\t" if file.suffix.lower() == ".tsv" else ","


def _fit(file: Path, between: str) -> float:
    """Of the first rows, the share that has as many cells as the header; 0 where that is in one piece."""
    counts = [len(cells) for cells in _sample(file, between)]
    if not counts or counts[0] < 2:
        return 0.0
    return (1 + counts[1:].count(counts[0])) / (1 + len(counts[1:]))


def _sample(file: Path, between: str) -> Iterator[list[str]]:
    """The header and the first rows, up to one that is not CSV."""
    with suppress(csv.Error):
        yield from islice(filter(None, _reader(file, between)), _SAMPLE + 1)


def _reader(file: Path, between: str, skips: bool = False) -> Any:
    csv.field_size_limit(_CELL_LIMIT)
    lines = (line for _, line in text_lines(file) if isinstance(line, str))
    return csv.reader(lines, delimiter=between, strict=True, skipinitialspace=skips)
