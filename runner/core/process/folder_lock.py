"""One process at a time writes into a folder: a lock that is gone when its process is, however that ended.

The lock is the kernel's (``flock``) on a file in the folder, so that a process that was killed leaves none
behind, and another process that got its number is not taken for it. The file says who holds it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path

from runner.core.errors import ConfigError, Issue
from runner.core.process.posix import fcntl

NAME = ".lock"
_BUSY = 0.3  # seconds to try again: somebody may only be asking whether the folder is held
_ENDING = 25.0  # for which the children of a process that is gone may still be ending
_CONTENDED = (errno.EACCES, errno.EAGAIN)
_held: dict[str, FolderLock] = {}


class FolderLock:
    """A folder that this process holds; ``descriptor`` can be passed to a child, which then holds it too."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file, self.descriptor = file, descriptor
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(owner).encode())
        _held[str(file)] = self

    def release(self) -> None:
        """Let another process have the folder; a second call does nothing."""
        if _held.get(str(self._file)) is not self:
            return
        del _held[str(self._file)]
        with contextlib.suppress(OSError):  # on Windows nobody can remove an open file
            self._file.unlink()
        os.close(self.descriptor)


def hold(folder: Path, what: str) -> FolderLock:
    """Hold a folder for this process, which may hold it already; it is made if it is not there.

    Raises ``ConfigError`` when another process does (``what`` says what that one does there), with its host
    and number, and for a folder that cannot be written.
    """
    file = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise ConfigError(unwritable(folder, error)) from error
    if (known := _held.get(str(file.absolute()))) is not None:
        return known
    began = time.monotonic()
    while True:
        descriptor = _open(file)
        if _try(descriptor, shared=False) and _is(file, descriptor):
            return FolderLock(file.absolute(), descriptor)
        owner = _owner(descriptor)
        os.close(descriptor)
        if time.monotonic() - began > (_ENDING if _is_gone(owner) else _BUSY):
            hint = "wait until it has ended, or name another output_dir"
            raise ConfigError(Issue(str(folder), f"another process {what} ({_named(owner)})", hint))
        time.sleep(0.05)


def holder(folder: Path) -> str | None:
    """The host and the number of the process that writes into a folder now; None if there is none."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _try(descriptor, shared=True) else _named(_owner(descriptor))
    finally:
        os.close(descriptor)


def _open(file: Path) -> int:
    """Open the file of a lock, which nobody empties who does not hold it. Raises ``ConfigError``."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(unwritable(file.parent, error)) from error


def unwritable(folder: Path, error: Exception) -> Issue:
    """The issue of an output folder that cannot be made or written."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Issue(f"output_dir={folder}", f"cannot be written: {reason}", "name another folder")


def _try(descriptor: int, shared: bool) -> bool:
    """Take the lock if it is free. Where the file system has no locks the folder counts as free."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 2**30, os.SEEK_SET)  # behind what the file says, which others shall read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in _CONTENDED
    return True


def _is(file: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except OSError:
        return False


def _owner(descriptor: int) -> dict[str, object]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 1000))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_gone(owner: dict[str, object]) -> bool:
    """Whether the process that took the lock has ended on this machine, and only children of it hold on."""
    import psutil

    pid = owner.get("pid")
    return owner.get("host") == socket.gethostname() and isinstance(pid, int) and not psutil.pid_exists(pid)


def _named(owner: dict[str, object]) -> str:
    return f"host {owner.get('host', 'unknown')}, pid {owner.get('pid', 'unknown')}"


def _forget_in_child() -> None:
    """A forked child (a worker of a data loader) shall not keep the lock of a parent that was killed."""
    for lock in _held.values():
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
