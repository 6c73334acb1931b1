"""Examples on disk as a ``datasets.Dataset``: written while they are read, then selected by number."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from runner.data.formats import Example

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH_ROWS, _BATCH_BYTES = 1000, 4 * 2**20  # what is in memory before it is written
_READ_ROWS = 100  # in memory at a time when all examples are read

# The messages are JSON: as Arrow structs each would get the keys of all others, as null.
SCHEMA = pa.schema([("source", pa.int64()), ("place", pa.string()), ("example", pa.string())])


class ExampleWriter:
    """Appends examples to an Arrow file; of each only 25 bytes stay in memory.

    ``identify`` gives the 16 bytes by which duplicates are found (of ``runner.data.clean``). ``add``
    and ``close`` raise ``OSError`` when the disk is full.
    """

    def __init__(self, file: Path, identify: Callable[[Example], bytes]) -> None:
        self._file, self._identify = file, identify
        self._writer: Any = None
        self._rows: list[tuple[int, str, str]] = []
        self._bytes = 0
        self._drop_reasons, self._identities = bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._drop_reasons)

    def add(self, example: Example, drop_reason: int = 0) -> None:
        """Write an example; ``drop_reason`` is that of ``runner.data.clean``."""
        row = encode_example(example)
        self._rows.append(row)
        self._bytes += len(row[-1])
        self._drop_reasons.append(drop_reason)
        self._identities += self._identify(example)
        if len(self._rows) == _BATCH_ROWS or self._bytes > _BATCH_BYTES:
            self._flush()

    def close(self) -> Examples:
        """The examples written, to be read."""
        self._flush()
        self._writer.finalize()
        drop_reasons = np.frombuffer(self._drop_reasons, np.uint8)
        identities = np.frombuffer(self._identities, np.uint64).reshape(-1, 2)
        return Examples(_mapped(self._file), np.arange(len(self)), drop_reasons, identities)

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = open_writer(self._file, SCHEMA)
        if self._rows:
            self._writer.write_table(_table(self._rows))
        self._rows, self._bytes = [], 0


class Examples(Sequence[Example]):
    """Examples of a memory-mapped file: all, or those at ``indices``, where a row may occur more than once.

    ``drop_reasons`` (of ``runner.data.clean``) and ``identities`` [rows, 2], which are equal for equal
    examples, are those of the whole file, and known only of what was just read.
    """

    def __init__(
        self,
        mapped: mmap.mmap,
        indices: np.ndarray | None = None,
        drop_reasons: np.ndarray | None = None,
        identities: np.ndarray | None = None,
    ) -> None:
        self._mapped, self._indices = mapped, indices
        self._drop_reasons, self._identities = drop_reasons, identities
        self._all = _dataset(mapped)

    @classmethod
    def open(cls, file: Path) -> Examples:
        """All examples of a file. Raises ``OSError``, ``ValueError``, ``ArrowException``."""
        return cls(_mapped(file))

    def __len__(self) -> int:
        return len(self._all if self._indices is None else self._indices)

    @property
    def indices(self) -> np.ndarray:
        """The row of each example in the dataset."""
        return np.arange(len(self._all)) if self._indices is None else self._indices

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """One of them, or some without reading them."""
        if isinstance(index, slice):
            return Examples(self._mapped, self.indices[index])
        row = index if self._indices is None else int(self._indices[index])
        return decode_example(*self._all[row].values())

    def __iter__(self) -> Iterator[Example]:
        for table in self._tables():
            yield from decode_examples(table)

    @classmethod
    def concatenated(cls, parts: list[Examples]) -> Examples:
        """Examples of one dataset after one another."""
        first = parts[0]
        return first._with(np.concatenate([part.indices for part in parts]))

    def take(self, positions: np.ndarray) -> Examples:
        """Those at some positions, or where a mask says so."""
        return self._with(self.indices[positions])

    def of_rows(self, rows: np.ndarray) -> Examples:
        """Those with these numbers in the file."""
        return self._with(rows)

    def _with(self, indices: np.ndarray) -> Examples:
        return Examples(self._mapped, indices, self._drop_reasons, self._identities)

    def _tables(self) -> Iterator[pa.Table]:
        for table in tables(self.dataset(), _READ_ROWS):
            yield table
            # for each row that is read the kernel maps 64 kB around it, some 400 kB in all columns; without
            # this 4,000 rows out of 5 GB made 1.9 GB of resident memory
            if hasattr(mmap, "MADV_DONTNEED"):
                self._mapped.madvise(mmap.MADV_DONTNEED)

    def dataset(self) -> Dataset:
        """The selected rows as a dataset with the columns of ``SCHEMA``."""
        if self._indices is None:
            return self._all
        return self._all.select(self._indices, keep_in_memory=True, new_fingerprint="selected")

    def save(self, file: Path, convert: Callable[[Example], list[Example]] | None = None) -> Examples:
        """Write the selected examples, or what ``convert`` makes of them, to a file, and open that.

        Raises ``OSError`` when the disk is full.
        """
        with open_writer(file, SCHEMA) as writer:
            for table in self._tables():
                if convert is not None:
                    converted = (part for example in decode_examples(table) for part in convert(example))
                    table = _table(map(encode_example, converted))
                writer.write_table(table)
            writer.finalize()
        return Examples.open(file)

    @property
    def drop_reasons(self) -> np.ndarray:
        """Why each is dropped, 0 for those that are not."""
        assert self._drop_reasons is not None
        return self._drop_reasons[self.indices]

    @property
    def identities(self) -> np.ndarray:
        """Equal where examples are."""
        assert self._identities is not None
        return self._identities[self.indices]


def open_writer(file: Path, schema: pa.Schema) -> Any:
    """A ``datasets`` writer of Arrow tables to a file. Raises ``OSError``."""
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter

    # without a fingerprint in the file, opening it as a dataset would read all of it for one
    return ArrowWriter(path=str(file), features=Features.from_arrow_schema(schema), fingerprint="prepared")


def open_dataset(file: Path) -> Dataset:
    """A file as a memory-mapped dataset, which stays readable when the file is removed.

    It knows no file name: what is mapped or filtered from it later would be written beside that. Raises
    ``OSError``, ``ValueError`` (an empty file), ``ArrowException``.
    """
    return _dataset(_mapped(file))


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)


def _dataset(mapped: mmap.mmap) -> Dataset:
    from datasets import Dataset

    return Dataset.from_buffer(pa.py_buffer(mapped))


def tables(dataset: Any, rows: int) -> Iterator[pa.Table]:
    """All of a dataset, as Arrow tables of at most so many ``rows``."""
    return dataset.with_format("arrow").iter(rows)


def first_equal(identities: np.ndarray) -> np.ndarray:
    """Of each of ``identities`` [rows, 2], the position of the first that is equal to it."""
    order = np.lexsort((identities[:, 1], identities[:, 0]))  # stable: of equal ones the first stays first
    ordered = identities[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def _table(rows: Iterable[tuple[int, str, str]]) -> pa.Table:
    return pa.table(list(map(list, zip(*rows, strict=True))), schema=SCHEMA)


def encode_example(example: Example) -> tuple[int, str, str]:
    """An example as a row of ``SCHEMA``; what JSON does not know becomes text."""
    content: list[Any] = [example.text, example.label]
    if example.text is None:
        content += [example.messages, example.tools, example.rejected]
    return example.source, example.place, json.dumps(content, default=str)


def decode_example(source: int, place: str, content: str) -> Example:
    """The example of a row."""
    text, label, *more = json.loads(content)
    messages, tools, rejected = map(tuple, more or ((), (), ()))
    return Example(source, messages, text, tools, place, rejected, label)


def decode_examples(table: pa.Table) -> Iterator[Example]:
    """The examples of a table of ``SCHEMA``."""
    return map(decode_example, *(table.column(name).to_pylist() for name in SCHEMA.names))
