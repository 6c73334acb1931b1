"""The one reader of training data: files, folders, hub data sets and mixes of these, row by row.

Everything wrong in a file is reported with its file and line or row number, before anything is trained.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from runner.errors import Problem, Refused, nearest
from runner.files import Rows, file_rows, local_files
from runner.formats import (
    COLUMNS,
    FORMATS,
    KINDS,
    OPTIONAL,
    Example,
    Kind,
    expected,
    missing,
    recognise,
    to_example,
)
from runner.messages import BadRow, Row
from runner.settings import DataSettings

SHOWN_PROBLEMS = 20
_NAMES = sorted({name for parts in FORMATS.values() for part in parts for name in part})


@dataclass
class Source:
    """One source as read: where from, its format, its fingerprint, and its rows as examples.

    ``remarks`` say what was read but may not be meant.
    """

    path: str
    row_format: str
    fingerprint: str
    examples: list[Example] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "path": self.path,
            "format": self.row_format,
            "rows": len(self.examples),
            "fingerprint": self.fingerprint,
        }


def read_sources(
    given: str | list, data: DataSettings, key: str, seed: int, kind: Kind = "answers"
) -> list[Source]:
    """Read every source of ``data.path`` or ``data.eval_path`` (``key`` names it in messages).

    ``kind`` is what the recipe learns from, and decides which formats can be meant.
    Weights of a mix are applied here: 0.5 keeps a seeded half of a source's rows, 2 repeats each twice, as
    the same object, so that a repeated row is not taken for a duplicate. Raises ``Refused`` with up to
    ``SHOWN_PROBLEMS`` problems and the number of the others.
    """
    sources, problems = [], []
    for entry in given if isinstance(given, list) else [given]:
        options = entry if isinstance(entry, dict) else {"path": entry}
        try:
            source = _read_source(options, data, key, kind)
            source.examples = _weighted(source.examples, options.get("weight", 1), seed, options, key)
            sources.append(source)
        except Refused as refused:
            problems += refused.problems
    if problems:
        raise Refused(limited(problems, key))
    return sources


def limited(problems: list[Problem], key: str) -> list[Problem]:
    """The first ``SHOWN_PROBLEMS`` of them, and how many there are besides."""
    hidden = len(problems) - SHOWN_PROBLEMS
    more = [Problem(key, f"and {hidden} more mistakes like these")] if hidden > 0 else []
    return [*problems[:SHOWN_PROBLEMS], *more]


def _read_source(options: dict[str, Any], data: DataSettings, key: str, kind: Kind) -> Source:
    path, row_format = str(options["path"]), str(options.get("format") or data.format)
    if row_format != "auto" and row_format not in KINDS[kind]:
        known = f"the format {row_format!r} holds no {kind}" if row_format in FORMATS else ""
        message = f"{path}: {known or f'unknown format {row_format!r}'}"
        raise Refused(Problem(key, message, nearest(row_format, ["auto", *KINDS[kind]])))
    if len(KINDS[kind]) == 1:
        row_format = KINDS[kind][0]
    columns = data.columns if options.get("columns") is None else options["columns"]
    digest, source, formats = hashlib.sha256(), Source(path, "", ""), set()
    problems: list[Problem] = []
    files = local_files(path, key)
    for file in files:
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            problems.append(Problem(str(file), f"cannot be read: {error.strerror}"))
            continue
        place, rows = file_rows(file)
        formats.add(_convert(str(file), place, rows, row_format, kind, columns, source, problems))
    source.fingerprint = f"sha256:{digest.hexdigest()}"
    if not files:
        rows, source.fingerprint = _hub_rows(path, data, key)
        place = f"{path}, row "
        formats.add(_convert(path, place, rows, row_format, kind, columns, source, problems))
    if problems:
        raise Refused(problems)
    source.row_format = ", ".join(sorted(formats))
    return source


def _convert(
    name: str,
    place: str,
    rows: Rows,
    row_format: str,
    kind: Kind,
    columns: dict[str, str],
    source: Source,
    problems: list[Problem],
) -> str:
    """Add a file's rows to ``source`` and what is wrong with it to ``problems``; return its format."""
    rows = list(rows)
    found = {column: None for _, row in rows if isinstance(row, dict) for column in row}
    first = next((row for _, row in rows if isinstance(row, dict)), None)
    if first is None:
        problems += [row for _, row in rows if isinstance(row, Problem)] or [Problem(name, "holds no rows")]
        return row_format
    reason = _mapping_problem(columns, found)
    if not reason and row_format == "auto":
        row_format = recognise(_renamed(first, columns), kind) or ""
        if not row_format:
            reason = (
                f"the columns {sorted(_renamed(first, columns))} fit no format",
                _suggested(first, kind),
            )
    elif not reason and (lost := missing(row_format, _renamed(found, columns))):
        listed = f"has no {lost[0]!r}, which the format {row_format!r} needs; it has {sorted(found)}"
        reason = (listed, nearest(lost[0], found) if kind == "answers" else _suggested(found, kind))
    for number, row in rows:
        if isinstance(row, Problem):
            problems.append(row)
        elif not reason:
            row = _renamed(row, columns)
            try:
                source.examples.append(to_example(row, number, row_format, place, kind))
            except BadRow as error:
                problems.append(Problem(f"{place}{number}", _explain(row, row_format, kind, error)))
    if reason:
        problems.append(Problem(name, *reason))
    source.remarks += _overlooked(name, _renamed(found, columns))
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


def _mapping_problem(columns: dict[str, str], found: Iterable[str]) -> tuple[str, str] | None:
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
        raise Refused(Problem(f"{key}={path}", message.splitlines()[0][:300])) from error
    return enumerate(map(dict, table), start=1), f"datasets:{table._fingerprint}"


def _weighted(
    examples: list[Example], weight: Any, seed: int, options: dict[str, Any], key: str
) -> list[Example]:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        message = f"the weight of {options['path']} must be a number above 0, got {weight!r}"
        raise Refused(Problem(key, message, "0.5 takes half of its rows, 2 each of them twice"))
    whole, share = divmod(weight, 1)
    part = sorted(random.Random(seed).sample(range(len(examples)), round(share * len(examples))))
    if not whole and not part:
        message = f"the weight {weight} leaves none of the {len(examples)} rows of {options['path']}"
        raise Refused(Problem(key, message))
    return [*examples * int(whole), *(examples[index] for index in part)]
