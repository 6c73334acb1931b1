"""The one reader of training data: files, folders, hub data sets and mixes of these, row by row.

Everything wrong in a file is reported with its file and line or row number, before anything is trained. Rows
go to disk as they are read; in memory there is only what is counted of them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np

from runner.config.settings import DataSettings
from runner.core.errors import ConfigError, Issue, nearest
from runner.data.clean import clean, drop_reason
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
from runner.data.messages import BadRow, Row
from runner.data.spool import Examples, Spool

SHOWN_ISSUES = 20
_NAMES = sorted({name for parts in FORMATS.values() for part in parts for name in part})


@dataclass
class Source:
    """One source as read: where from, its format, its fingerprint, how many rows it gives, and these.

    ``remarks`` say what was read but may not be meant.
    """

    path: str
    row_format: str
    fingerprint: str
    rows: int
    examples: Examples | None = None  # once they are prepared, a split has them
    remarks: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "path": self.path,
            "format": self.row_format,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
        }


class Mistakes:
    """The first ``SHOWN_ISSUES`` issues of those added, and the number of the others."""

    def __init__(self) -> None:
        self.shown: list[Issue] = []
        self.hidden = 0

    def __bool__(self) -> bool:
        return bool(self.shown)

    def add(self, *issues: Issue) -> None:
        """Note what is wrong."""
        room = SHOWN_ISSUES - len(self.shown)
        self.shown += issues[:room]
        self.hidden += max(0, len(issues) - room)

    def add_all(self, others: Mistakes) -> None:
        """Note what others are."""
        self.add(*others.shown)
        self.hidden += others.hidden

    def refusal(self, key: str) -> ConfigError:
        """The error that says them all; ``key`` names what they are mistakes of."""
        more = [Issue(key, f"and {self.hidden} more mistakes like these")] if self.hidden else []
        return ConfigError([*self.shown, *more])


def read_sources(
    given: str | list, data: DataSettings, key: str, seed: int, kind: Kind = "answers"
) -> list[Source]:
    """Read every source of ``data.path`` or ``data.eval_path`` (``key`` names it in messages).

    ``kind`` is what the recipe learns from, and decides which formats can be meant.
    Weights of a mix are applied here: 0.5 keeps a seeded half of a source's rows, 2 repeats each twice, as
    the same row of one file, so that a repeated row is not taken for a duplicate. Raises ``ConfigError``
    with up to ``SHOWN_ISSUES`` issues and the number of the others.
    """
    sources, mistakes, spool = [], Mistakes(), Spool()
    for entry in given if isinstance(given, list) else [given]:
        options = entry if isinstance(entry, dict) else {"path": entry}
        found, first = Mistakes(), len(spool)
        try:
            source = _read_source(options, data, key, kind, spool, found)
            if not found:
                examples = _weighted(spool.since(first), options.get("weight", 1), seed, options, key)
                sources.append(replace(source, examples=examples, rows=len(examples)))
        except ConfigError as error:
            found.add(*error.issues)
        mistakes.add_all(found)
    if mistakes:
        raise mistakes.refusal(key)
    return sources


def _read_source(
    options: dict[str, Any], data: DataSettings, key: str, kind: Kind, spool: Spool, mistakes: Mistakes
) -> Source:
    path, row_format = str(options["path"]), str(options.get("format") or data.format)
    if row_format != "auto" and row_format not in KINDS[kind]:
        known = f"the format {row_format!r} holds no {kind}" if row_format in FORMATS else ""
        message = f"{path}: {known or f'unknown format {row_format!r}'}"
        raise ConfigError(Issue(key, message, nearest(row_format, ["auto", *KINDS[kind]])))
    if len(KINDS[kind]) == 1:
        row_format = KINDS[kind][0]
    columns = data.columns if options.get("columns") is None else options["columns"]
    digest, formats = hashlib.sha256(), set()
    remarks: list[str] = []
    convert = partial(
        _convert, row_format=row_format, kind=kind, columns=columns, data=data, spool=spool, remarks=remarks
    )
    files = local_files(path, key)
    for file in files:
        try:
            digest.update(content_digest(file))
        except OSError as error:
            mistakes.add(Issue(str(file), f"cannot be read: {error.strerror}"))
            continue
        place, rows = file_rows(file)
        formats.add(convert(str(file), place, rows, mistakes=mistakes))
    fingerprint = f"sha256:{digest.hexdigest()}"
    if not files:
        rows, fingerprint = _hub_rows(path, data, key)
        formats.add(convert(path, f"{path}, row ", rows, mistakes=mistakes))
    return Source(path, ", ".join(sorted(formats)), fingerprint, rows=0, remarks=remarks)


def _convert(
    name: str,
    place: str,
    rows: Rows,
    row_format: str,
    kind: Kind,
    columns: dict[str, str],
    data: DataSettings,
    spool: Spool,
    mistakes: Mistakes,
    remarks: list[str],
) -> str:
    """Add a file's rows to ``spool`` and what is wrong with it to ``mistakes``; return its format."""
    given, unreadable, wrong = row_format != "auto", Mistakes(), Mistakes()
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
                spool.add(example, drop_reason(example, data.min_chars))
        except BadRow as error:
            wrong.add(Issue(f"{place}{number}", _explain(row, row_format, kind, error)))
    if first is None:
        mistakes.add_all(unreadable)
        if not unreadable:
            mistakes.add(Issue(name, "holds no rows"))
        return row_format
    reason = _mapping_issue(columns, found)
    if not reason and not row_format:
        reason = f"the columns {sorted(first)} fit no format", _suggested(first, kind)
    elif not reason and given and (lost := missing(row_format, _renamed(dict(found), columns))):
        listed = f"has no {lost[0]!r}, which the format {row_format!r} needs; it has {sorted(found)}"
        reason = (listed, nearest(lost[0], found) if kind == "answers" else _suggested(found, kind))
    if reason:  # one mistake of the file, rather than one of each row
        mistakes.add_all(unreadable)
        mistakes.add(Issue(name, *reason))
    else:
        mistakes.add_all(wrong)
    remarks += _overlooked(name, _renamed(dict(found), columns))
    return row_format


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """A row under the format's names; a mapped column wins over one that has the name already."""
    if not columns:
        return row
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {columns[name]: value for name, value in row.items() if name in columns}


def _overlooked(name: str, found: Iterable[str]) -> list[str]:
    """A remark on each column that is not read but is called almost like one that could be."""
    absent = [column for column in OPTIONAL if column not in found]
    unread = [column for column in found if column not in COLUMNS]
    close = ((column, get_close_matches(column.lower(), absent, n=1, cutoff=0.75)) for column in unread)
    return [
        f"{name}: the column {column!r} is not read; data.columns={{{column}: {match[0]}}} reads it"
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
        return f"did you mean data.columns={{{', '.join(pairs)}}}? {expected(kind)}"
    return f"map them, as in data.columns={{question: prompt, answer: completion}}; {expected(kind)}"


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


def _weighted(examples: Examples, weight: Any, seed: int, options: dict[str, Any], key: str) -> Examples:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        message = f"the weight of {options['path']} must be a number above 0, got {weight!r}"
        raise ConfigError(Issue(key, message, "0.5 takes half of its rows, 2 each of them twice"))
    whole, share = divmod(weight, 1)
    part = sorted(random.Random(seed).sample(range(len(examples)), round(share * len(examples))))
    if not whole and not part:
        message = f"the weight {weight} leaves none of the {len(examples)} rows of {options['path']}"
        raise ConfigError(Issue(key, message))
    every = np.arange(len(examples))
    return examples.take(np.concatenate([*[every] * int(whole), np.array(part, np.int64)]))
