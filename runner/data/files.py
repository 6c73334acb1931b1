"""Files of rows: which ones a path means, what they hold, and their rows one by one.

What cannot be read stands as an issue in its place, so that all issues of a file are found together.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from runner.core.errors import Issue
from runner.core.paths import ROW_FILES
from runner.data.rows.values import printable
from runner.data.sources.folders import find_files
from runner.data.sources.tables import arrow_rows, parquet_rows
from runner.data.sources.text_files import (
    Rows,
    csv_rows,
    json_rows,
    quoted_in_vain,
    separator,
    skips_spaces,
    usual_separator,
)


def local_files(path: str, key: str) -> list[Path]:
    """The files that a path means; none for a name on the hub. Raises ``ConfigError``."""
    return find_files(path, key).files


def content_digest(file: Path) -> bytes:
    """What a file holds, in 32 bytes. Raises ``OSError``."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def file_rows(file: Path) -> tuple[str, Rows]:
    """What comes before a row's number in a message, and the rows. Raises ``OSError``."""
    kind = ROW_FILES.get(file.suffix.lower())
    if kind is None:
        issue = Issue(str(file), f"unknown file type {file.suffix!r}", f"allowed: {', '.join(ROW_FILES)}")
        return f"{file}, row ", [(0, issue)]
    if kind == "json":
        return json_rows(file)
    readers = {"csv": csv_rows, "parquet": parquet_rows, "arrow": arrow_rows}
    return f"{file}, row ", readers[kind](file)


def file_notes(file: Path) -> list[str]:
    """What was recognised by a file's content against its ending."""
    if ROW_FILES.get(file.suffix.lower()) != "csv":
        return []
    found = separator(file)
    notes = [] if found == usual_separator(file) else [f"{file}: its cells are separated by {found!r}"]
    if skips_spaces(file, found):
        notes.append(f"{file}: the spaces behind its separators belong to no cell, as in its header")
    elif cell := quoted_in_vain(file, found):
        message = f"a space before a quote makes the quotes part of the text, as in {printable(cell)}"
        notes.append(f"{file}: {message}; with a space in the header too they quote")
    return notes
