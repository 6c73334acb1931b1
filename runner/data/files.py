"""Rows of a local file: JSON, JSONL, CSV, TSV or Parquet.

What cannot be read stands as an issue in its place, so that all issues of a file are found together. Only
a JSON array is held in memory as a whole; everything else is read row by row.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue
from runner.core.paths import EXAMPLES
from runner.data.messages import Row, shown

FILE_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_CELL_LIMIT = 2**31 - 1  # characters; the csv module's own limit is 128 Ki, less than a long conversation
_PARQUET_ROWS = 1000  # in memory at a time
_MARK = b"\xef\xbb\xbf"  # the byte order mark, with which some editors begin UTF-8

# A row, or why it is none, with its number from 1.
Rows = Iterable[tuple[int, Row | Issue]]


class _Twice(ValueError):
    """An object that names a key twice, of which JSON's own reader would keep the last without a word."""


def local_files(path: str, key: str) -> list[Path]:
    """The files that a path means; none for a name on the hub."""
    if path.startswith("embedded:"):
        path = str(EXAMPLES / f"{path.removeprefix('embedded:')}.jsonl")
    local = Path(path).expanduser()
    if not local.is_dir():
        return [local] if local.exists() else []
    kinds = [file for file in sorted(local.iterdir()) if file.suffix.lower() in FILE_KINDS]
    files = [file for file in kinds if not file.name.startswith(".")]
    if not files:
        raise ConfigError(Issue(f"{key}={path}", f"the folder holds none of {', '.join(FILE_KINDS)}"))
    return files


def content_digest(file: Path) -> bytes:
    """What a file holds, in 32 bytes. Raises ``OSError``."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def file_rows(file: Path) -> tuple[str, Rows]:
    """What comes before a row's number in a message, and the rows."""
    kind = FILE_KINDS.get(file.suffix.lower())
    if kind is None:
        issue = Issue(str(file), f"unknown file type {file.suffix!r}", f"allowed: {', '.join(FILE_KINDS)}")
        return f"{file}, row ", [(0, issue)]
    if kind == "csv":
        return f"{file}, row ", _csv_rows(file)
    if kind == "parquet":
        return f"{file}, row ", _parquet_rows(file)
    # the content tells, as files named .json often hold JSONL; a lone brace opens an object over many lines
    begins = _first_line(file)
    if begins.startswith(b"[") or begins == b"{":
        return f"{file}, row ", _json_rows(file)
    return f"{file}:", _jsonl_rows(file)


def _first_line(file: Path) -> bytes:
    with file.open("rb") as stream:
        lines = (line.removeprefix(_MARK).strip() for line in stream)
        return next((line for line in lines if line), b"")


def _lines(file: Path) -> Iterator[tuple[int, str | Issue]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                broken = line[error.start : error.end]
                message = f"byte {error.start + 1} of the line is not UTF-8 ({broken!r})"
                yield number, Issue(f"{file}:{number}", message, "save the file as UTF-8")


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    for number, line in _lines(file):
        if isinstance(line, Issue):
            yield number, line
        elif line.strip():
            yield number, _json_row(file, number, line)


def _json_row(file: Path, number: int, line: str) -> Row | Issue:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return Issue(f"{file}:{number}", f"is not JSON: {error.msg} at column {error.colno}")
    except _Twice as error:
        return Issue(f"{file}:{number}", str(error), "keep one of them")
    if isinstance(row, dict):
        return row
    return Issue(f"{file}:{number}", f"must be an object, got {type(row).__name__}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its keys and values. Raises ``_Twice``."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"names {twice!r} twice in one object: {shown(made)}")
    return made


def _json_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    lines = [line for _, line in _lines(file)]
    broken = [line for line in lines if isinstance(line, Issue)]
    if broken:
        yield from enumerate(broken, start=1)
        return
    try:
        rows = json.loads("".join(map(str, lines)), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        yield 0, Issue(f"{file}:{error.lineno}", f"is not JSON: {error.msg} at column {error.colno}")
        return
    except _Twice as error:
        yield 0, Issue(str(file), str(error), "keep one of them")
        return
    if not isinstance(rows, list):
        message = f"holds one object with the keys {sorted(rows)}, not a list of rows"
        yield 0, Issue(str(file), message, "an object a line, or all of them in [ ]")
        return
    for number, row in enumerate(rows, start=1):
        wrong = Issue(f"{file}, row {number}", f"must be an object, got {type(row).__name__}")
        yield number, row if isinstance(row, dict) else wrong


def _csv_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    broken = False
    for number, line in _lines(file):  # first, as a row may stand on many lines
        if isinstance(line, Issue):
            yield number, line
            broken = True
    if broken:
        return
    csv.field_size_limit(_CELL_LIMIT)
    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.reader((str(line) for _, line in _lines(file)), delimiter=separator, strict=True)
    header: list[str] = []
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = [name.strip() for name in cells]
                if twice := [name for name in header if header.count(name) > 1]:
                    message = f"the header names the column {twice[0]!r} twice"
                    yield 0, Issue(f"{file}:{reader.line_num}", message, "rename one of them")
                    return
                continue
            number += 1
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                message = f"has {len(cells)} cells, but the header names {len(header)} columns"
                hint = "quote cells that hold separators"
                yield number, Issue(f"{file}:{reader.line_num}", message, hint)
    except csv.Error as error:
        yield number, Issue(f"{file}:{reader.line_num}", f"is not CSV: {error}")


def _parquet_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(file).iter_batches(_PARQUET_ROWS):
            for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                yield number, row
    except (ArrowException, OSError) as error:
        yield number, Issue(str(file), f"cannot be read as Parquet: {str(error).splitlines()[0]}")
