"""Labelled rows in an Arrow file: written one by one, mapped into memory when they are trained on."""

from __future__ import annotations

import hashlib
import json
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from runner.data.formats import Kind
from runner.data.labels import Encoded

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH, _BATCH_TOKENS = 1000, 2**20  # rows and tokens written at once
_TOKENS = pa.list_(pa.int32())
_LABELS: dict[Kind, pa.DataType] = {"feedback": pa.bool_(), "labels": pa.string()}


@dataclass
class Totals:
    """What is known of rows once each was seen: how many, their tokens, and a digest of all they teach."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    _digest: Any = field(default_factory=hashlib.sha256, repr=False)
    _known: str = ""

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> Totals:
        """Those of rows that are at hand."""
        totals = cls()
        for row in rows:
            totals.add(row)
        return totals

    @classmethod
    def read(cls, record: dict[str, Any]) -> Totals:
        """Those that ``record`` gave."""
        known = dict(record)
        return cls(_known=known.pop("fingerprint"), **known)

    def add(self, row: Encoded) -> None:
        """Count one more row."""
        parts: list[Any] = [row.input_ids, row.labels]
        parts += [row.rejected.input_ids, row.rejected.labels] if row.rejected else []
        self._digest.update(json.dumps(parts + [row.label] * (row.label is not None)).encode())
        self.rows += 1
        self.tokens += row.tokens
        self.trained_tokens += row.trained_tokens
        self.longest = max(self.longest, *(len(side.input_ids) for side in row.sides))

    @property
    def fingerprint(self) -> str:
        """Digest of what is really trained on: token ids, labels and classes, in order."""
        return self._known or f"sha256:{self._digest.hexdigest()}"

    def record(self) -> dict[str, Any]:
        """As plain values."""
        names = ("rows", "tokens", "trained_tokens", "longest", "fingerprint")
        return {name: getattr(self, name) for name in names}


class TokenRows(Sequence[Encoded]):
    """Rows of a table that ``write_rows`` made, as they are asked for."""

    def __init__(self, table: pa.Table, totals: Totals) -> None:
        self._table, self.totals = table, totals
        self._batches = table.to_batches()
        self._ends = list(accumulate(map(len, self._batches)))

    @classmethod
    def of(cls, path: Path, totals: Totals) -> TokenRows:
        """The rows of a file, which needs no name from then on. Raises ``OSError``, ``ArrowException``."""
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return cls(pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all(), totals)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """One row, or a list of some."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        which = bisect_right(self._ends, number)
        return _row(self._batches[which], number - self._ends[which] + len(self._batches[which]))

    def __iter__(self) -> Iterator[Encoded]:
        return (_row(batch, index) for batch in self._batches for index in range(len(batch)))

    def classes(self) -> list[str]:
        """The different classes of the rows."""
        return self._table["label"].unique().to_pylist()

    def numbered(self, classes: list[str]) -> TokenRows:
        """The same rows, with the number of each class in ``classes`` in its place."""
        column = self._table.schema.get_field_index("label")
        number = {name: index for index, name in enumerate(classes)}
        chunks = [[number[name] for name in chunk.to_pylist()] for chunk in self._table["label"].chunks]
        table = self._table.set_column(column, "label", pa.chunked_array(chunks, pa.int64()))
        return TokenRows(table, Totals.of(TokenRows(table, self.totals)))

    def dataset(self) -> Dataset:
        """The rows as a ``datasets.Dataset``.

        ``input_ids`` and ``labels`` (token ids, -100 where not trained on); of pairs ``chosen_`` and
        ``rejected_`` of both; ``label`` of a row that has one.
        """
        from datasets import Dataset
        from datasets.table import InMemoryTable

        # without a fingerprint it would read all rows for one; what is derived of them belongs elsewhere
        print_ = self.totals.fingerprint.removeprefix("sha256:")[:32]
        return Dataset(InMemoryTable(self._table.drop_columns("source")), fingerprint=print_)


def write_rows(path: Path, rows: Iterable[Encoded], kind: Kind) -> Totals:
    """Write rows of one kind to a file. Raises ``OSError``."""
    totals, schema = Totals(), _schema(kind)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        written = 0  # tokens that are no more in memory
        for row in rows:
            totals.add(row)
            for name, value in _values(row).items():
                columns[name].append(value)
            if len(columns["source"]) == _BATCH or totals.tokens - written > _BATCH_TOKENS:
                writer.write_batch(pa.record_batch(columns, schema))
                columns, written = {name: [] for name in schema.names}, totals.tokens
        if columns["source"]:
            writer.write_batch(pa.record_batch(columns, schema))
    return totals


def _schema(kind: Kind) -> pa.Schema:
    prefixes = ("chosen_", "rejected_") if kind == "pairs" else ("",)
    tokens = [(prefix + name, _TOKENS) for prefix in prefixes for name in ("input_ids", "labels")]
    label = [("label", _LABELS[kind])] if kind in _LABELS else []
    return pa.schema([("source", pa.int64()), *tokens, *label])


def _values(row: Encoded) -> dict[str, Any]:
    values: dict[str, Any] = {"source": row.source}
    chosen = "chosen_" if row.rejected else ""
    for prefix, side in ((chosen, row), ("rejected_", row.rejected)):
        if side is not None:
            values |= {f"{prefix}input_ids": side.input_ids, f"{prefix}labels": side.labels}
    return values | ({"label": row.label} if row.label is not None else {})


def _row(batch: pa.RecordBatch, index: int) -> Encoded:
    names = batch.schema.names
    source = batch.column("source")[index].as_py()
    label = batch.column("label")[index].as_py() if "label" in names else None
    if "rejected_labels" not in names:
        return Encoded(source, *_side(batch, "", index), label=label)
    rejected = Encoded(source, *_side(batch, "rejected_", index))
    return Encoded(source, *_side(batch, "chosen_", index), rejected=rejected, label=label)


def _side(batch: pa.RecordBatch, prefix: str, index: int) -> tuple[list[int], list[int]]:
    ids, labels = (
        batch.column(f"{prefix}{name}")[index].values.to_numpy().tolist() for name in ("input_ids", "labels")
    )
    return ids, labels
