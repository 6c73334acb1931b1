"""Make a model's folder in the cache, once, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from glob import escape
from pathlib import Path

from filelock import FileLock

from runner.core.atomic import json_text, write_atomically, xxh3_of_file


def convert_once(target: Path, write: Callable[[Path, Path], None]) -> Path:
    """The folder ``target``, made if need be by ``write(folder, scratch)``; ``scratch`` goes afterwards.

    The folder appears complete or not at all, and processes that want it at once make it once. One whose
    files are not those that were written is made again. Raises what ``write`` raises.
    """
    if is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if is_whole(target):  # made while we waited
            return target
        # A temporary folder here was left by a killed process: the lock's holder is alone.
        for stale in target.parent.glob(f".{escape(target.name)}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        scratch = target.parent / f".{target.name}-{os.getpid()}"
        scratch.mkdir()
        try:
            write(scratch / "model", scratch)
            _like_new_files(scratch / "model")
            _record(target, scratch / "model")
            if target.is_dir():
                target.rename(scratch / "damaged")
            (scratch / "model").rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def is_whole(folder: Path) -> bool:
    """Whether a converted model is there, with the files that were written, to the byte."""
    try:
        expected = json.loads(digests_of(folder).read_text(encoding="utf-8"))
        found = {file.name: _digest(file) for file in folder.iterdir()}
        return bool(expected) and found == expected
    except (OSError, ValueError, AttributeError):
        return False


def digests_of(target: Path) -> Path:
    """The file beside a converted model's folder that holds XXH3 of the folder's files, by name."""
    return target.with_name(f".{target.name}.digests.json")


def _like_new_files(folder: Path) -> None:
    """safetensors makes its files readable by their owner alone: give them the mode of any new file."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for written in folder.iterdir():
        written.chmod(mode)


def _record(target: Path, made: Path) -> None:
    digests = {file.name: _digest(file) for file in sorted(made.iterdir())}
    write_atomically(digests_of(target), json_text(digests))


def _digest(file: Path) -> str:
    """XXH3 of a file, read once by a process as long as it seems unchanged."""
    status = file.stat()
    return _digest_of(file, status.st_size, status.st_mtime_ns)


@cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    return xxh3_of_file(file)
