"""Digests of large files, remembered: tens of gigabytes take seconds even at the speed of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import xxhash

from runner.core.atomic import write_atomically, xxh3_of_file
from runner.core.paths import cache_dir


def digest_of_files(files: Iterable[Path]) -> str:
    """``xxh3:HEX`` over files, by name and content; each file's by its path, size and time of change.

    Raises ``OSError``.
    """
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.name}\0{_file_digest(file)}\0".encode())
    return f"xxh3:{digest.hexdigest()}"


def _file_digest(file: Path) -> str:
    status = file.stat()
    key = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    memory = cache_dir() / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.txt"
    if memory.is_file():
        return memory.read_text(encoding="utf-8")
    digest = xxh3_of_file(file)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, digest)
    except OSError:
        pass  # a cache that cannot be written costs time only
    return digest
