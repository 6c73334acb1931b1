"""Examples in a file rather than in memory: a line of JSON each, read one by one and chosen by number."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from runner.core.errors import ConfigError, Issue
from runner.data.clean import identity
from runner.data.formats import Example
from runner.models.locate import cache_dir

Numbers = np.ndarray  # of int64


def rows_dir() -> Path:
    """Where rows stand while and after they are prepared. Raises ``ConfigError`` where nothing can be
    written."""
    folder = cache_dir() / "rows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error) from error
    return folder


def unwritable(error: OSError) -> ConfigError:
    """What a user reads when the disk is full or may not be written."""
    message = f"rows cannot be kept there: {error}"
    return ConfigError(Issue(str(cache_dir() / "rows"), message, "RUNNER_CACHE=FOLDER moves it"))


class Lines:
    """A file of lines that grows at its end and is read by line number; it needs no name once it is open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ends = array("Q", [0])

    @classmethod
    def of(cls, path: Path) -> Lines:
        """The lines of a file that is complete. Raises ``OSError``."""
        lines = cls(path.open("rb"))
        for line in lines._file:
            lines._ends.append(lines._ends[-1] + len(line))
        return lines

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, line: bytes) -> None:
        """Add a line, which ends with its only line end."""
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def flush(self) -> None:
        """Make all lines readable."""
        self._file.flush()

    def __getitem__(self, number: int) -> bytes:
        begin, end = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), end - begin, begin)


class Examples(Sequence[Example]):
    """Examples on disk, in an order that ``numbers`` gives: the same one may stand in it several times.

    ``drop_reasons`` (of ``runner.data.clean``) and ``identities`` [rows, 2] are known of what was just read.
    """

    def __init__(self, spool: Spool | Lines, numbers: Numbers) -> None:
        self._spool, self.numbers = spool, numbers

    @classmethod
    def of(cls, path: Path) -> Examples:
        """All examples of a file that is complete. Raises ``OSError``."""
        lines = Lines.of(path)
        return cls(lines, np.arange(len(lines)))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """One of them, or some without reading them."""
        if isinstance(index, slice):
            return Examples(self._spool, self.numbers[index])
        return decoded(self._spool[self.numbers[index]])

    def __iter__(self) -> Iterator[Example]:
        return map(decoded, self.lines())

    def lines(self) -> Iterator[bytes]:
        """Each as it stands in the file."""
        return (self._spool[number] for number in self.numbers)

    def batches(self, rows: int, size: int) -> Iterator[list[Example]]:
        """All of them, in lists of at most as many ``rows`` and hardly more than ``size`` bytes."""
        batch, read = [], 0
        for line in self.lines():
            batch.append(decoded(line))
            read += len(line)
            if len(batch) == rows or read > size:
                yield batch
                batch, read = [], 0
        if batch:
            yield batch

    def take(self, positions: Numbers) -> Examples:
        """Those at some positions, or where a mask says so."""
        return Examples(self._spool, self.numbers[positions])

    @property
    def drop_reasons(self) -> np.ndarray:
        """What speaks against each."""
        assert isinstance(self._spool, Spool)
        return np.frombuffer(self._spool.drop_reasons, np.uint8)[self.numbers]

    @property
    def identities(self) -> np.ndarray:
        """Equal where examples are."""
        assert isinstance(self._spool, Spool)
        return np.frombuffer(self._spool.identities, np.uint64).reshape(-1, 2)[self.numbers]


class Spool(Lines):
    """Examples being read, in a file without a name that is gone with the process."""

    def __init__(self) -> None:
        folder = rows_dir()
        try:
            super().__init__(tempfile.TemporaryFile(dir=folder, buffering=1 << 20))  # noqa: SIM115
        except OSError as error:
            raise unwritable(error) from error
        self.drop_reasons = bytearray()
        self.identities = bytearray()

    def add(self, example: Example, drop_reason: int = 0) -> None:
        """Keep an example, and what speaks against it. Raises ``ConfigError`` when the disk is full."""
        try:
            self.append(encoded(example))
        except OSError as error:
            raise unwritable(error) from error
        self.drop_reasons.append(drop_reason)
        self.identities += identity(example)

    def since(self, first: int) -> Examples:
        """The examples from a number on. Raises ``ConfigError`` when the disk is full."""
        try:
            self.flush()
        except OSError as error:
            raise unwritable(error) from error
        return Examples(self, np.arange(first, len(self)))


def joined(parts: Iterable[Examples]) -> Examples:
    """Examples of one file after one another."""
    parts = list(parts)
    if not parts:
        return Spool().since(0)
    return Examples(parts[0]._spool, np.concatenate([part.numbers for part in parts]))


def first_equal(identities: np.ndarray) -> Numbers:
    """Of each of ``identities`` [rows, 2], the position of the first that is equal to it."""
    order = np.lexsort((identities[:, 1], identities[:, 0]))  # stable: of equal ones the first stays first
    ordered = identities[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def encoded(example: Example) -> bytes:
    """An example as a line; what JSON does not know becomes the text that a template would write."""
    kept: list[Any] = [example.source, example.place, example.text, example.label]
    if example.text is None:
        kept += [example.messages, example.tools, example.rejected]
    return json.dumps(kept, default=str).encode() + b"\n"


def decoded(line: bytes) -> Example:
    """The example of a line."""
    source, place, text, label, *more = json.loads(line)
    messages, tools, rejected = map(tuple, more or ((), (), ()))
    return Example(source, messages, text, tools, place, rejected, label)
