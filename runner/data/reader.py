"""The one reader of training data: files, folders, hub data sets and mixes of these, row by row.

Everything wrong in a file is reported with its file and line or row number, before anything is trained.
Examples are written to disk as they are read; in memory there is only what is counted of them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.settings import DataSettings
from runner.core.errors import ConfigError, Issue, nearest
from runner.data.clean import clean, drop_reason
from runner.data.example_store import Examples, ExampleWriter
from runner.data.files import Rows, content_digest, file_rows, local_files
from runner.data.formats import (
    COLUMNS,
    FORMATS,
    KINDS,
    OPTIONAL,
    Kind,
    expected,
    missing,
    recognise,
    to_example,
)
from runner.data.issue_list import IssueList
from runner.data.messages import BadRow, Row

_NAMES = sorted({name for parts in FORMATS.values() for part in parts for name in part})


@dataclass
class Source:
    """One source as read: its path, format, fingerprint, number of examples, and the examples.

    ``warnings`` name columns that are not read but may be meant.
    """

    path: str
    row_format: str
    fingerprint: str
    rows: int
    examples: Examples | None = None  # None in a prepared split, which has them
    warnings: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "path": self.path,
            "format": self.row_format,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
        }


def read_sources(
    given: str | list, data: DataSettings, key: str, seed: int, folder: Path, kind: Kind = "completion"
) -> list[Source]:
    """Read every source of ``data.path`` or ``data.eval_path`` (``key`` names it in messages) into a folder.

    ``kind`` is what the recipe learns from, and decides which formats can be meant.
    Weights of a mix are applied here: 0.5 keeps a seeded half of a source's examples, 2 repeats each twice,
    as the same row of one file, so that a repeated one is not taken for a duplicate. Raises ``ConfigError``
    with up to ``SHOWN_ISSUES`` issues and the number of the others, ``OSError`` when the disk is full.
    """
    issues, writer = IssueList(), ExampleWriter(folder / f"{key}.arrow")
    sources: list[tuple[Source, np.ndarray]] = []
    for entry in given if isinstance(given, list) else [given]:
        options = entry if isinstance(entry, dict) else {"path": entry}
        found, first = IssueList(), len(writer)
        try:
            source = _read_source(options, data, key, kind, writer, found)
            if not found:
                rows = np.arange(first, len(writer))
                sources.append((source, _weighted(rows, options.get("weight", 1), seed, options, key)))
        except ConfigError as error:
            found.add(*error.issues)
        issues.extend(found)
    if issues:
        raise issues.error(key)
    examples = writer.close()
    return [replace(source, examples=examples.take(rows), rows=len(rows)) for source, rows in sources]


def _read_source(
    options: dict[str, Any],
    data: DataSettings,
    key: str,
    kind: Kind,
    writer: ExampleWriter,
    issues: IssueList,
) -> Source:
    path, row_format = str(options["path"]), str(options.get("format") or data.format)
    if row_format != "auto" and row_format not in KINDS[kind]:
        known = f"the format {row_format!r} holds no {kind} examples" if row_format in FORMATS else ""
        message = f"{path}: {known or f'unknown format {row_format!r}'}"
        raise ConfigError(Issue(key, message, nearest(row_format, ["auto", *KINDS[kind]])))
    if len(KINDS[kind]) == 1:
        row_format = KINDS[kind][0]
    columns = data.columns if options.get("columns") is None else options["columns"]
    digest, formats = hashlib.sha256(), set()
    warnings: list[str] = []
    convert = partial(
        _convert,
        row_format=row_format,
        kind=kind,
        columns=columns,
        data=data,
        writer=writer,
        issues=issues,
        warnings=warnings,
    )
    files = local_files(path, key)
    for file in files:
        try:
            digest.update(content_digest(file))
        except OSError as error:
            issues.add(Issue(str(file), f"cannot be read: {error.strerror}"))
            continue
        place, rows = file_rows(file)
        formats.add(convert(str(file), place, rows))
    fingerprint = f"sha256:{digest.hexdigest()}"
    if not files:
        rows, fingerprint = _hub_rows(path, data, key)
        formats.add(convert(path, f"{path}, row ", rows))
    return Source(path, ", ".join(sorted(formats)), fingerprint, rows=0, warnings=warnings)


def _convert(
    name: str,
    place: str,
    rows: Rows,
    row_format: str,
    kind: Kind,
    columns: dict[str, str],
    data: DataSettings,
    writer: ExampleWriter,
    issues: IssueList,
    warnings: list[str],
) -> str:
    """Append a file's rows to ``writer``, what is wrong with them to ``issues``; return the file's format."""
    given, unreadable, wrong = row_format != "auto", IssueList(), IssueList()
    found: dict[str, None] = {}  # the columns of all rows
    first: Row | None = None
    for number, row in rows:
        if isinstance(row, Issue):
            unreadable.add(row)
            wrong.add(row)
            continue
        if not row.keys() <= found.keys():
            found |= dict.fromkeys(row)
        row = _renamed(row, columns)
        if first is None:
            first = row
            row_format = row_format if given else recognise(row, kind) or ""
        try:
            if row_format:
                example = to_example(row, number, row_format, place, kind)
                example = clean(example) if data.clean else example
                writer.add(example, drop_reason(example, data.min_chars))
        except BadRow as error:
            wrong.add(Issue(f"{place}{number}", _explain(row, row_format, kind, error)))
    if first is None:
        issues.extend(unreadable)
        if not unreadable:
            issues.add(Issue(name, "holds no rows"))
        return row_format
    reason = _mapping_issue(columns, found)
    if not reason and not row_format:
        reason = f"the columns {sorted(first)} fit no format", _suggested(first, kind)
    elif not reason and given and (lost := missing(row_format, _renamed(dict(found), columns))):
        listed = f"has no {lost[0]!r}, which the format {row_format!r} needs; it has {sorted(found)}"
        reason = (listed, nearest(lost[0], found) if kind == "completion" else _suggested(found, kind))
    if reason:  # one issue of the file, rather than one of each row
        issues.extend(unreadable)
        issues.add(Issue(name, *reason))
    else:
        issues.extend(wrong)
    warnings += _overlooked(name, _renamed(dict(found), columns))
    return row_format


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """A row under the format's names; a mapped column wins over one that has the name already."""
    if not columns:
        return row
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {columns[name]: value for name, value in row.items() if name in columns}


def _overlooked(name: str, found: Iterable[str]) -> list[str]:
    """A warning for each column that is not read but is called almost like one that could be."""
    absent = [column for column in OPTIONAL if column not in found]
    unread = [column for column in found if column not in COLUMNS]
    close = ((column, get_close_matches(column.lower(), absent, n=1, cutoff=0.75)) for column in unread)
    return [
        f"{name}: the column {column!r} is not read; 'data.columns={{{column}: {match[0]}}}' reads it"
        for column, match in close
        if match
    ]


def _mapping_issue(columns: dict[str, str], found: Iterable[str]) -> tuple[str, str] | None:
    targets = list(columns.values())
    absent = [name for name in columns if name not in found]
    if absent:
        message = f"columns maps {absent[0]!r}, which the file lacks; it has {sorted(found)}"
        if columns[absent[0]] in found and absent[0] in COLUMNS:
            return message, f"the file's name comes first: {{{columns[absent[0]]}: {absent[0]}}}"
        return message, nearest(absent[0], found)
    if unknown := [target for target in targets if target not in COLUMNS]:
        return f"columns maps to {unknown[0]!r}, which no format reads", nearest(unknown[0], COLUMNS, 20)
    if twice := [target for target in targets if targets.count(target) > 1]:
        return f"columns maps two columns to {twice[0]!r}", "keep one of them"
    return None


def _suggested(columns: Iterable[str], kind: Kind) -> str:
    """A mapping of misspelt columns to the nearest right names, or how to write one."""
    close = {column: get_close_matches(column.lower(), _NAMES, n=1, cutoff=0.75) for column in columns}
    pairs = [f"{column}: {match[0]}" for column, match in close.items() if match and match[0] != column]
    if pairs:
        return f"did you mean 'data.columns={{{', '.join(pairs)}}}'? {expected(kind)}"
    return f"map them, as in 'data.columns={{question: prompt, answer: completion}}'; {expected(kind)}"


def _explain(row: Row, row_format: str, kind: Kind, error: BadRow) -> str:
    lost, other = missing(row_format, row), recognise(row, kind)
    if lost and other:
        return f"is in the format {other!r}, but the file began in {row_format!r}: one format a file"
    if lost:
        close = get_close_matches(lost[0], row, n=1)
        return f"has no {lost[0]!r}; it has {sorted(row)}" + (f"; is it {close[0]!r}?" if close else "")
    return str(error)


def _hub_rows(path: str, data: DataSettings, key: str) -> tuple[Rows, str]:
    from datasets import load_dataset

    try:
        table = load_dataset(path, data.subset, split=data.split)
    except Exception as error:  # the library raises many kinds, all of which mean: not to be had
        message = f"{path!r} is no file here, and the hub gave no data set: {type(error).__name__}: {error}"
        raise ConfigError(Issue(f"{key}={path}", message.splitlines()[0][:300])) from error
    return enumerate(map(dict, table), start=1), f"datasets:{table._fingerprint}"


def _weighted(rows: np.ndarray, weight: Any, seed: int, options: dict[str, Any], key: str) -> np.ndarray:
    """The numbers of a source's rows as often as its weight says."""
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        message = f"the weight of {options['path']} must be a number above 0, got {weight!r}"
        raise ConfigError(Issue(key, message, "0.5 takes half of its rows, 2 each of them twice"))
    whole, share = divmod(weight, 1)
    part = sorted(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    if not whole and not part:
        message = f"the weight {weight} leaves none of the {len(rows)} rows of {options['path']}"
        raise ConfigError(Issue(key, message))
    return np.concatenate([*[rows] * int(whole), rows[np.array(part, np.int64)]])
