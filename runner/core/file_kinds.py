"""What is read as a file of text and may be none: named pipes, devices, sockets, folders; not UTF-8.

Opening a named pipe may wait for ever.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from runner.core.errors import Issue

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)


def other_kind(path: Path) -> str | None:
    """What a path is, if it is no file; None also where nothing can be found out, as the reader says why."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def no_files(folder: Path, patterns: Iterable[str]) -> Iterator[Issue]:
    """An issue for each entry of a folder that has the name of a file and cannot be read as one."""
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        kind = other_kind(path)
        if kind is None and not path.exists():
            kind = "a link that leads nowhere"
        if kind:
            yield Issue(str(path), f"is {kind}, not a file", "put the file itself there")


def decoded(content: bytes, file: object, line: int = 1) -> str | Issue:
    """The text of bytes that begin at a line of a file, without a byte order mark; or why it is none."""
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        before, broken = error.object[: error.start], error.object[error.start : error.end]
        at, number = error.start - before.rfind(b"\n"), line + before.count(b"\n")  # both from 1
        message = f"byte {at} of the line is not UTF-8 ({broken!r})"
        return Issue(f"{file}:{number}", message, "save the file as UTF-8")


def text_lines(file: Path) -> Iterator[tuple[int, str | Issue]]:
    """The lines of a file, with their ends, and their numbers from 1; an issue for each not in UTF-8."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            yield number, decoded(line, file, number)
