"""Whether adapters that are combined have been trained from one another, or from a common one."""

from __future__ import annotations

import contextlib
from itertools import combinations
from pathlib import Path
from typing import Any

from runner.config.adapters import Adapter, find_adapter
from runner.core.errors import ConfigError
from runner.runs.parents import find_parent


def related(adapters: list[Adapter]) -> list[str]:
    """A sentence for each two adapters of which one continues the other, or that both continue a third."""
    lines = [_line_of(adapter) for adapter in adapters]
    found: list[str] = []
    for (one, line), (other, others) in combinations(list(zip(adapters, lines, strict=True)), 2):
        if line[0] & others[0]:
            found.append(f"{one.name} and {other.name} are the same adapter")
        elif any(line[0] & step for step in others[1:]):
            found.append(f"{other.name} continues {one.name}")
        elif any(others[0] & step for step in line[1:]):
            found.append(f"{one.name} continues {other.name}")
        elif any(mine & theirs for mine in line[1:] for theirs in others[1:]):
            found.append(f"{one.name} and {other.name} continue the same adapter")
    return found


def _line_of(adapter: Adapter) -> list[set[str]]:
    """The marks (folder, digest of the weights) of an adapter, and after it those of its ancestors."""
    line: list[set[str]] = []
    waiting: list[tuple[set[str], Adapter | None]] = [(set(), adapter)]
    while waiting and len(line) < 100:  # a record that names itself must not go round for ever
        marks, found = waiting.pop()
        record = found.record if found else {}
        places = {found.folder, found.run or found.folder} if found else set()
        digest = (record.get("digests") or {}).get("adapter")
        line.append(marks | {str(each.resolve()) for each in places} | ({str(digest)} if digest else set()))
        if found and found.run:
            entries = record.get("parents") or []
            waiting += [_parent(each, found.run) for each in entries if isinstance(each, dict)]
    return line


def _parent(entry: dict[str, Any], run: Path) -> tuple[set[str], Adapter | None]:
    """The marks of a parent that the ``run.json`` of ``run`` names, and the parent if it is still there."""
    marks = {str(entry["digest"])} if entry.get("digest") else set[str]()
    with contextlib.suppress(ConfigError, OSError):  # damaged since, a model, or no path at all
        folder = find_parent(entry, run)
        return marks, find_adapter(str(folder)) if folder else None
    return marks, None
