"""Rows of typed tables: Parquet and Arrow files, as plain values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import Issue
from runner.data.rows.values import ClassNumber, Row, listed, printable, without_nulls

if TYPE_CHECKING:
    from pyarrow import Schema

_ROWS = 1000  # in memory at a time
_MAGIC = b"ARROW1"  # with which an Arrow file begins, and an Arrow stream does not


def parquet_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    """The rows of a Parquet file."""
    from pyarrow.parquet import ParquetFile

    def read() -> tuple[Schema, Iterable[Any]]:
        table = ParquetFile(file)
        return table.schema_arrow, table.iter_batches(_ROWS)

    return _table_rows(file, "Parquet", read)


def arrow_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    """The rows of an Arrow file or stream, as ``datasets`` saves them."""
    import pyarrow as pa

    def read() -> tuple[Schema, Iterable[Any]]:
        source = pa.memory_map(str(file))
        if source.read(len(_MAGIC)) == _MAGIC:
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            return opened.schema, batches
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, stream

    return _table_rows(file, "Arrow", read)


def plain_row(row: dict[str, Any], classes: Mapping[str, Sequence[str]]) -> Row:
    """A row of a typed table without the nulls that its nested types add; those of columns stay.

    ``classes`` are the names in columns of numbers, as ``class_names`` finds them.
    """
    plain = {name: value if value is None else without_nulls(value) for name, value in row.items()}
    numbers = {name: plain.get(name) for name in classes}
    named = {
        name: ClassNumber(number, classes[name])
        for name, number in numbers.items()
        if isinstance(number, int)
    }
    return plain | named


def class_names(features: Any) -> dict[str, list[str]]:
    """Of each column that is a ``ClassLabel`` of ``datasets`` the names of its classes, by their numbers.

    ``features`` are those of a data set as a mapping, of whatever a file holds in their place.
    """
    columns = features.items() if isinstance(features, dict) else ()
    return {
        name: list(map(str, column["names"]))
        for name, column in columns
        if isinstance(column, dict) and column.get("_type") == "ClassLabel" and column.get("names")
    }


def _features(schema: Schema) -> Any:
    """The features that ``datasets`` writes into the schema of a table; None of another table."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _table_rows(file: Path, kind: str, read: Any) -> Iterator[tuple[int, Row | Issue]]:
    from pyarrow import ArrowException

    number = 0
    try:
        schema, batches = read()
        names, classes = schema.names, class_names(_features(schema))
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            message = f"has two columns of the name {twice[0]!r}; it has {listed(names)}"
            yield 0, Issue(str(file), message, "rename one of them")
            return
        for batch in batches:
            for row in _batch_rows(batch):
                number += 1
                if isinstance(row, dict):
                    yield number, plain_row(row, classes)
                else:
                    yield number, Issue(f"{file}, row {number}", row)
    except (ArrowException, OSError) as error:
        yield number, Issue(str(file), f"cannot be read as {kind}: {str(error).splitlines()[0]}")


def _batch_rows(batch: Any) -> list[Row | str]:
    """The rows of a batch; where one cannot be turned into plain values, why not."""
    rows: list[Row | str]
    try:
        rows = batch.to_pylist()
    except Exception:  # the library raises many kinds, of codecs, dates, time zones and decimals
        rows = [_row(batch, number) for number in range(len(batch))]
    return rows


def _row(batch: Any, number: int) -> Row | str:
    row = {}
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[number].as_py()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            kind = batch.schema.field(name).type
            return f"its column {printable(name)!r} ({kind}) holds what cannot be read: {reason[:200]}"
    return row
