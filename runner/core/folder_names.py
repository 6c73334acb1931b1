"""Folder names from overrides: what differs between the cells of a sweep, safe for file systems and
shells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_PLAIN = "-._+[]"  # of what is no letter and no digit, what may stand in a folder name
_LONGEST = 120  # characters of a name; file systems end at 255 bytes, and some letters are four
_NAMELESS = "run"  # the only cell of a sweep without axes


def name_of(overrides: Sequence[str]) -> str:
    """A folder name that says what the overrides are, and is another one for others.

    Whatever a file system or a shell could stumble over is written as ``%XX`` (as in an address), and a long
    name ends with its digest.
    """
    parts = (text.lstrip("+~").partition("=") for text in overrides)
    name = ",".join(f"{_safe(key)}={_safe(_unquoted(value))}" for key, _, value in parts) or _NAMELESS
    return _short(name)


def folder_name(text: str) -> str:
    """A folder name of the same kind from overrides that are joined already."""
    return _short("".join(letter if letter in "=," else _safe(letter) for letter in text) or _NAMELESS)


def _short(name: str) -> str:
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    kept = name.encode()[: _LONGEST - len(digest) - 1].decode(errors="ignore")
    return f"{kept}~{digest}"


def _unquoted(value: str) -> str:
    """A value without the quotes that it needs on the command line."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _safe(text: str) -> str:
    return "".join(
        letter
        if letter.isalnum() or letter in _PLAIN
        else "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogatepass"))
        for letter in text
    )
