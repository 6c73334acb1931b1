"""Files that are whole or not there, and the digests by which they are known."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from runner.core.process.posix import POSIX

TEMPORARY = re.compile(r"\..+\.\d+")  # the names of the files that ``write_atomically`` is killed in


def write_atomically(file: Path, text: str | Iterable[str]) -> None:
    """Write a temporary file beside ``file`` and rename it over the old one; ``text`` is all of it, or parts.

    A reader sees the old content or the new one, never half of it. Raises ``OSError``.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")  # as TEMPORARY has it
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines([text] if isinstance(text, str) else text)
    temporary.replace(file)


def json_line(value: Any) -> str:
    """A value as one line of JSON that every parser reads: NaN and infinity, which JSON has not, are null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def json_text(value: Any, sort_keys: bool = False) -> str:
    """A value as indented JSON with a newline at its end; NaN and infinity are null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    return text + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):  # NumPy's float64 is one, too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk (``fsync``); Windows opens no folder."""
    if not POSIX and path.is_dir():
        return
    number = os.open(path, os.O_RDONLY if POSIX else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sha256_of(text: str | bytes) -> str:
    """``sha256:HEX`` of a text, encoded as UTF-8, or of bytes."""
    content = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def sha256_of_file(file: Path) -> str:
    """``sha256:HEX`` of a file's content. Raises ``OSError``."""
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def sha256_of_files(files: Iterable[Path]) -> str:
    """``sha256:HEX`` over files, by name and content. Raises ``OSError``."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_of_file(file)}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def xxh3_of_file(file: Path) -> str:
    """XXH3 with 128 bits of a file, as hexadecimal digits. Raises ``OSError``.

    Finds damage at the speed of memory (tens of gigabytes in seconds), and is no seal against forgery.
    """
    with file.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return xxhash.xxh3_128_hexdigest(b"")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return xxhash.xxh3_128_hexdigest(view)
