"""Rows of typed tables: Parquet and Arrow files, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runner.core.errors import Issue
from runner.data.rows.values import Row, listed, printable, without_nulls

_ROWS = 1000  # in memory at a time
_MAGIC = b"ARROW1"  # with which an Arrow file begins, and an Arrow stream does not


def parquet_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    """The rows of a Parquet file."""
    from pyarrow.parquet import ParquetFile

    def read() -> tuple[list[str], Iterable[Any]]:
        table = ParquetFile(file)
        return table.schema_arrow.names, table.iter_batches(_ROWS)

    return _table_rows(file, "Parquet", read)


def arrow_rows(file: Path) -> Iterator[tuple[int, Row | Issue]]:
    """The rows of an Arrow file or stream, as ``datasets`` saves them."""
    import pyarrow as pa

    def read() -> tuple[list[str], Iterable[Any]]:
        source = pa.memory_map(str(file))
        if source.read(len(_MAGIC)) == _MAGIC:
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            return opened.schema.names, batches
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema.names, stream

    return _table_rows(file, "Arrow", read)


def plain_row(row: dict[str, Any]) -> Row:
    """A row of a typed table without the nulls that its nested types add; those of columns stay."""
    return {name: value if value is None else without_nulls(value) for name, value in row.items()}


def _table_rows(file: Path, kind: str, read: Any) -> Iterator[tuple[int, Row | Issue]]:
    from pyarrow import ArrowException

    number = 0
    try:
        names, batches = read()
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            message = f"has two columns of the name {twice[0]!r}; it has {listed(names)}"
            yield 0, Issue(str(file), message, "rename one of them")
            return
        for batch in batches:
            for row in _batch_rows(batch):
                number += 1
                if isinstance(row, dict):
                    yield number, plain_row(row)
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
