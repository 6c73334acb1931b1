"""Named pipes, devices, sockets and folders where a file is to be read: opening one may wait for ever."""

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
