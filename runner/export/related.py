"""Whether adapters that are combined have been trained from one another, or from a common one."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from runner.config.adapters import Adapter


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
    record, marks = adapter.record, {str(adapter.folder.resolve())}
    marks |= {str(adapter.run.resolve())} if adapter.run else set()
    waiting = [(marks, record)]
    while waiting and len(line) < 100:  # a record that names itself must not go round for ever
        marks, record = waiting.pop()
        digest = (record.get("digests") or {}).get("adapter")
        line.append(marks | ({str(digest)} if digest else set()))
        parents = record.get("parents")
        waiting += [_parent(each) for each in parents] if isinstance(parents, list) else []
    return line


def _parent(given: Any) -> tuple[set[str], dict[str, Any]]:
    """The marks and the record of what ``parents`` of a run.json names, as a path or with its digests."""
    facts = given if isinstance(given, dict) else {"path": given}
    marks = {str(value) for value in facts.values() if str(value).startswith("sha256:")}
    path = next((facts[key] for key in ("path", "folder", "run", "adapter") if facts.get(key)), None)
    if path is None:
        return marks, {}
    folder = Path(str(path)).expanduser()
    file = folder / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError):
        record = {}
    return marks | {str(folder.resolve())}, record if isinstance(record, dict) else {}
