"""A row that remembers what of it was read, and the counts over all rows of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from runner.core.hydra_quoting import hydra_key
from runner.data.rows.values import check_value, is_given, printable

_SHOWN = 50  # columns or keys that a warning names
_OTHER_NAMES = {"system_prompt": "system", "system_message": "system", "context": "input"}
_COMPARED = 100  # columns whose names are compared: a table of 20,000 would take a minute
# Columns that hold what a text is about, which a text model does not see.
_MEDIA = ("image", "video", "audio", "sound", "picture", "photo", "pixel")


class ReadRow(dict[str, Any]):
    """A row; ``get`` and ``[]`` remember the columns that were read.

    ``unread_keys`` are keys of its messages that nothing reads, ``doubts`` what may be wrong with it. Raises
    ``BadRow`` for a value that nothing could use: half a surrogate pair, or too deep a nesting.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        check_value(row, "")
        self._read: set[str] = set()
        self.unread_keys: set[str] = set()
        self.doubts: set[str] = set()

    @classmethod
    def of(cls, row: dict[str, Any]) -> ReadRow:
        """The row itself if it is one already."""
        return row if isinstance(row, ReadRow) else cls(row)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dictionary."""
        self._read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return super().__getitem__(key)

    @property
    def unread(self) -> list[str]:
        """Columns that hold something and were not read."""
        return [name for name, value in self.items() if name not in self._read and is_given(value)]


class Tally:
    """What the rows of a source held that was not read, and what may be wrong with them, in rows."""

    def __init__(self) -> None:
        self.columns: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()
        self._doubts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, row: ReadRow, unread: Iterable[str], where: str) -> None:
        """Count a row."""
        self.columns.update(unread)
        self.keys.update(row.unread_keys)
        for doubt in row.doubts:
            self._doubts[doubt] += 1
            self._first.setdefault(doubt, where)

    def warnings(self, path: str, readable: Iterable[str]) -> list[str]:
        """A warning each for columns, media and message keys that were not read, and for each doubt.

        ``readable`` are the columns that could have been read: one that is called almost like one of them
        may be meant.
        """
        media = {name: count for name, count in self.columns.items() if _is_media(name)}
        columns = {name: count for name, count in self.columns.items() if name not in media}
        found = []
        if columns:
            hint = _meant(columns, [name for name in readable if name not in self.columns])
            found.append(f"{path}: columns not read: {_counted(columns)}{hint}")
        if media:
            found.append(f"{path}: rows about media, which is not read: {_counted(media)}")
        if self.keys:
            found.append(f"{path}: message keys not read: {_counted(self.keys)}")
        return found + [
            f"{path}: {count} rows with {doubt}, {self._first[doubt]} first"
            for doubt, count in sorted(self._doubts.items())
        ]


def _is_media(name: str) -> bool:
    return any(word in name.lower() for word in _MEDIA)


def _counted(counts: dict[str, int]) -> str:
    """Names with the number of their rows, most rows first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{printable(name)} ({count:,})" for name, count in ordered[:_SHOWN])
    more = len(ordered) - _SHOWN
    return named + (f" and {more:,} more" if more > 0 else "")


def _meant(columns: dict[str, int], readable: list[str]) -> str:
    """How to read columns that are called almost like one that could be."""
    pairs = []
    for name in list(columns)[:_COMPARED]:
        known = _OTHER_NAMES.get(name.lower())
        close = [known] if known in readable else get_close_matches(name.lower(), readable, 1, 0.75)
        pairs += [f"{hydra_key(name)}: {match}" for match in close]
    return f"; 'data.columns={{{', '.join(pairs)}}}' reads it" if pairs else ""
