"""The one reader of training data: files, folders, hub data sets and mixes of these, row by row.

Everything wrong in a file is reported with its file and line or row number, before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import Problem, Refused, nearest
from runner.formats import FORMATS, BadRow, Example, Row, expected, recognise, to_example
from runner.paths import EXAMPLES
from runner.settings import DataSettings

SHOWN_PROBLEMS = 20
FILE_KINDS = {".json": "json", ".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass
class Source:
    """One source as read: where from, its format, its fingerprint, and its rows as examples."""

    path: str
    row_format: str
    fingerprint: str
    examples: list[Example] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "path": self.path,
            "format": self.row_format,
            "rows": len(self.examples),
            "fingerprint": self.fingerprint,
        }


def read_sources(given: str | list, data: DataSettings, key: str, seed: int) -> list[Source]:
    """Read every source of ``data.path`` or ``data.eval_path`` (``key`` names it in messages).

    Weights of a mix are applied here: 0.5 keeps a seeded half of a source's rows, 2 repeats each twice.
    Raises ``Refused`` with up to ``SHOWN_PROBLEMS`` problems.
    """
    sources, problems = [], []
    for entry in given if isinstance(given, list) else [given]:
        options = entry if isinstance(entry, dict) else {"path": entry}
        try:
            source = _read_source(options, data, key)
            source.examples = _weighted(source.examples, options.get("weight", 1), seed)
            sources.append(source)
        except Refused as refused:
            problems += refused.problems
    if problems:
        hidden = len(problems) - SHOWN_PROBLEMS
        more = [Problem(key, f"and {hidden} more rows like these")] if hidden > 0 else []
        raise Refused([*problems[:SHOWN_PROBLEMS], *more])
    return sources


def _read_source(options: dict[str, Any], data: DataSettings, key: str) -> Source:
    path = str(options["path"])
    location, rows, fingerprint = _open(path, data, key)
    columns = options.get("columns") or data.columns
    rows = [(number, {columns.get(name, name): value for name, value in row.items()}) for number, row in rows]
    if not rows:
        raise Refused(Problem(location, "holds no rows"))
    row_format = str(options.get("format") or data.format)
    if row_format == "auto":
        row_format = recognise(rows[0][1]) or ""
        if not row_format:
            message = f"the columns {sorted(rows[0][1])} fit no format"
            raise Refused(Problem(location, message, f"map them with data.columns; {expected()}"))
    examples, problems = [], []
    for number, row in rows:
        try:
            examples.append(to_example(row, number, row_format))
        except BadRow as error:
            problems.append(Problem(f"{location}, row {number}", _explain(row, row_format, error)))
    if problems:
        raise Refused(problems)
    return Source(path, row_format, fingerprint, examples)


def _explain(row: Row, row_format: str, error: BadRow) -> str:
    missing = [part for part in FORMATS[row_format] if not set(part) & set(row)]
    other = recognise(row)
    if missing and other:
        return f"is in the format {other!r}, but the file began in {row_format!r}: one format a file"
    if missing:
        wanted = missing[0][0]
        return f"has no {wanted!r}; it has {sorted(row)}; {nearest(wanted, row)}"
    return str(error)


def _open(path: str, data: DataSettings, key: str) -> tuple[str, list[tuple[int, Row]], str]:
    """Rows with their numbers (from 1), a name for messages, and a fingerprint of the bytes."""
    if path.startswith("embedded:"):
        path = str(EXAMPLES / f"{path.removeprefix('embedded:')}.jsonl")
    local = Path(path).expanduser()
    if local.is_dir():
        files = sorted(file for file in local.iterdir() if file.suffix in FILE_KINDS)
        if not files:
            raise Refused(Problem(f"{key}={path}", f"the folder holds none of {', '.join(FILE_KINDS)}"))
    elif local.exists():
        files = [local]
    else:
        return _open_hub(path, data, key)
    digest, rows = hashlib.sha256(), []
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        rows += _file_rows(file, content)
    return str(path), rows, f"sha256:{digest.hexdigest()}"


def _file_rows(file: Path, content: bytes) -> Iterable[tuple[int, Row]]:
    kind = FILE_KINDS.get(file.suffix.lower())
    if kind is None:
        raise Refused(
            Problem(str(file), f"unknown file type {file.suffix!r}", f"allowed: {', '.join(FILE_KINDS)}")
        )
    if kind in ("csv", "parquet"):
        return _table_rows(file, kind)
    text = _decode(file, content)
    first = text.lstrip()[:1]
    return _json_rows(file, text) if kind == "json" and first == "[" else _jsonl_rows(file, text)


def _decode(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = f"byte {error.start} is not UTF-8 ({content[error.start : error.start + 1]!r})"
        raise Refused(Problem(f"{file}:{line}", message, "save the file as UTF-8")) from error


def _jsonl_rows(file: Path, text: str) -> Iterator[tuple[int, Row]]:
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(Problem(f"{file}:{number}", f"is not JSON: {error.msg} at column {error.colno}"))
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.append(Problem(f"{file}:{number}", f"must be an object, got {type(row).__name__}"))
    if problems:
        raise Refused(problems)


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"is not JSON: {error.msg} at column {error.colno}"
        raise Refused(Problem(f"{file}:{error.lineno}", message)) from error
    wrong = [number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)]
    if wrong:
        raise Refused(
            [Problem(f"{file}, row {number}", "must be an object") for number in wrong[:SHOWN_PROBLEMS]]
        )
    yield from enumerate(rows, start=1)


def _table_rows(file: Path, kind: str) -> Iterator[tuple[int, Row]]:
    import pandas

    try:
        if kind == "parquet":
            table = pandas.read_parquet(file)
        else:
            separator = "\t" if file.suffix.lower() == ".tsv" else ","
            table = pandas.read_csv(file, sep=separator, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise Refused(Problem(str(file), f"cannot be read as {kind}: {error}")) from error
    for number, row in enumerate(table.to_dict("records"), start=1):
        yield number, {str(name): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Lists and structs of a Parquet cell as Python objects; a missing cell as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and value != value else value


def _open_hub(path: str, data: DataSettings, key: str) -> tuple[str, list[tuple[int, Row]], str]:
    from datasets import load_dataset

    try:
        table = load_dataset(path, data.subset, split=data.split)
    except Exception as error:  # the library raises many kinds, all of which mean: not to be had
        message = f"{path!r} is no file here, and the hub gave no data set: {type(error).__name__}: {error}"
        raise Refused(Problem(f"{key}={path}", message.splitlines()[0][:300])) from error
    return path, list(enumerate(map(dict, table), start=1)), f"datasets:{table._fingerprint}"


def _weighted(examples: list[Example], weight: float, seed: int) -> list[Example]:
    whole, share = divmod(weight, 1)
    part = sorted(random.Random(seed).sample(range(len(examples)), round(share * len(examples))))
    return [*examples * int(whole), *(examples[index] for index in part)]
