"""The one reader of training data: files, folders, hub data sets and mixes of these, row by row.

Everything wrong in a file is reported with its file and line or row number, before anything is trained.
Examples are written to disk as they are read; in memory there is only what is counted of them.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.objective import Kind
from runner.config.settings import DataSettings
from runner.core.errors import ConfigError, Issue, nearest
from runner.data.clean import MASKED_ROW, clean, drop_reason, identity, prompt_identity
from runner.data.example_store import Examples, ExampleWriter
from runner.data.files import Rows, content_digest, file_notes, file_rows
from runner.data.formats import to_example
from runner.data.issue_list import IssueList
from runner.data.rows.doubts import doubts
from runner.data.rows.flags import row_flag
from runner.data.rows.read_row import ReadRow, Tally
from runner.data.rows.recognise import FORMATS, KINDS, OPTIONAL, recognise
from runner.data.rows.values import BadRow, Row
from runner.data.sources.columns import explain, format_issue, mapping_issue, renamed
from runner.data.sources.folders import find_files
from runner.data.sources.tables import class_names, plain_row


@dataclass
class Source:
    """One source as read: its path, format, fingerprint, number of examples, and the examples.

    ``files`` are the names of those of a folder; ``warnings`` say what was not read or may be wrong.
    """

    path: str
    row_format: str
    fingerprint: str
    rows: int
    files: list[str] = field(default_factory=list)
    examples: Examples | None = None  # None in a prepared split, which has them
    warnings: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "path": self.path,
            "format": self.row_format,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "files": self.files,
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
    identify = prompt_identity if data.deduplicate == "prompt" else identity
    issues, writer = IssueList(), ExampleWriter(folder / f"{key}.arrow", identify)
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


@dataclass
class _Reading:
    """How the files of one source are read, and what was found in them."""

    row_format: str
    kind: Kind
    columns: dict[str, str]
    data: DataSettings
    writer: ExampleWriter
    issues: IssueList
    tally: Tally = field(default_factory=Tally)
    formats: set[str] = field(default_factory=set)
    found: dict[str, None] = field(default_factory=dict)  # the columns of all rows, under the format's names


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
    reading = _Reading(row_format, kind, columns, data, writer, issues)
    digest = hashlib.sha256()
    found = find_files(path, key)
    for file in found.files:
        try:
            digest.update(content_digest(file))
        except OSError as error:
            issues.add(Issue(str(file), f"cannot be read: {error.strerror}"))
            continue
        place, rows = file_rows(file)
        _convert(str(file), place, rows, reading)
        found.notes += file_notes(file)
    fingerprint = f"sha256:{digest.hexdigest()}"
    if not found.files:
        rows, fingerprint = _hub_rows(path, data, key)
        _convert(path, f"{path}, row ", rows, reading)
    warnings = reading.tally.warnings(path, [name for name in OPTIONAL if name not in reading.found])
    formats = ", ".join(sorted(reading.formats))
    return Source(path, formats, fingerprint, 0, found.read_names(path), None, [*found.notes, *warnings])


def _convert(name: str, place: str, rows: Rows, reading: _Reading) -> None:
    """Append a file's rows to the writer, and what is wrong with them to the issues."""
    row_format, given = reading.row_format, reading.row_format != "auto"
    unreadable, wrong = IssueList(), IssueList()
    found: dict[str, None] = {}  # the columns of all rows
    first: Row | None = None
    for number, row in rows:
        if isinstance(row, Issue):
            unreadable.add(row)
            wrong.add(row)
            continue
        if not row.keys() <= found.keys():
            found |= dict.fromkeys(row)
        row, displaced = renamed(row, reading.columns)
        if first is None:
            first = row
            row_format = row_format if given else recognise(row, reading.kind) or ""
        try:
            if row_format:
                _add(row, number, row_format, place, displaced, reading)
        except BadRow as error:
            wrong.add(Issue(f"{place}{number}", explain(row, row_format, given, reading.kind, error)))
    if first is None:
        reading.issues.extend(unreadable)
        if not unreadable:
            reading.issues.add(Issue(name, "holds no rows"))
        return
    names = renamed(dict(found), reading.columns)[0]
    reason = mapping_issue(reading.columns, found)
    reason = reason or format_issue(row_format, given, found, names, first, reading.kind)
    if reason:  # one issue of the file, rather than one of each row
        reading.issues.extend(unreadable)
        reading.issues.add(Issue(name, *reason))
    else:
        reading.issues.extend(wrong)
    reading.formats.add(row_format)
    reading.found |= names


def _add(
    given: Row, number: int, row_format: str, place: str, displaced: list[str], reading: _Reading
) -> None:
    """Write the example of a row, and count what was not read of it. Raises ``BadRow``."""
    row, data = ReadRow(given), reading.data
    example = to_example(row, number, row_format, place, reading.kind)
    example = clean(example) if data.clean else example
    unread = row.unread
    trained, flags = row_flag(row, unread) if reading.kind != "classification" else (None, set[str]())
    reason = MASKED_ROW if trained is False else drop_reason(example, data.min_chars)
    reading.writer.add(example, reason)
    texts = [text for text in (example.text, example.label) if isinstance(text, str)]
    row.doubts |= doubts(texts, (example.messages, example.rejected))
    reading.tally.add(row, [*displaced, *(name for name in unread if name not in flags)], example.where)


def _hub_rows(path: str, data: DataSettings, key: str) -> tuple[Rows, str]:
    from datasets import load_dataset

    try:
        table = load_dataset(path, data.subset, split=data.split)
    except Exception as error:  # the library raises many kinds, all of which mean: not to be had
        message = f"{path!r} is no file here, and the hub gave no data set: {type(error).__name__}: {error}"
        raise ConfigError(Issue(f"{key}={path}", message.splitlines()[0][:300])) from error
    classes = class_names(table.features.to_dict())
    rows = (plain_row(dict(row), classes) for row in table)
    return enumerate(rows, start=1), f"datasets:{table._fingerprint}"


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
