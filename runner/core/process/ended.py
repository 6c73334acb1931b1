"""How a process ended, in words."""

from __future__ import annotations

import signal
from pathlib import Path

from runner.core.errors import ExitCode

_TAIL = 15  # lines of the log that are quoted for a process that recorded nothing


def how_it_ended(code: int) -> str:
    """An exit code in words: the name of the signal, or of what the code means."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    meanings = {int(each): each.name.lower() for each in ExitCode if each not in (0, 1)}
    return f"its process ended with exit code {code}" + (f" ({meanings[code]})" if code in meanings else "")


def tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        text = log.read_bytes()[-20000:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL:])
