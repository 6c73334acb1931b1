"""Prepared rows on disk, and those of earlier runs: what is trained on is read from here, whoever made it.

An entry is a folder: of each split its rows (Arrow) and its examples (JSON lines), and ``entry.json``, which
holds the rest and the digest of every file. Its name is a digest of all that decides the rows. It is written
aside and renamed; one that does not read as it was written is made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import ArrowException

from runner.config.settings import DataSettings
from runner.core.errors import ConfigError, Issue
from runner.core.paths import PACKAGE
from runner.data.files import content_digest, local_files
from runner.data.formats import Kind
from runner.data.reader import Source
from runner.data.splits import Data, Split
from runner.data.spool import Examples, rows_dir, unwritable
from runner.data.template import Renderer
from runner.data.token_rows import TokenRows, Totals

if TYPE_CHECKING:
    from runner.data.prepare import Draft

_KEPT, _KEPT_BYTES = 20, 20 * 10**9  # entries, those used last; the last one may be larger
_ABANDONED = 24 * 3600.0  # seconds after which a folder that was never finished belongs to no running process
_ASIDE = ".writing-"
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")


class Damaged(ValueError):
    """An entry that is not what was written."""


def prepared(key: str | None, keep: bool, make: Callable[[Path], None]) -> Data:
    """The rows of a key, which ``make`` writes into a folder if they are not there.

    They are kept for the next run where ``keep`` says so; without a key they cannot be found again.
    """
    folder = rows_dir()
    entry = folder / key if key and keep else None
    notes = []
    if entry is not None and entry.is_dir():
        try:
            data = _load(entry, verify=True)
        except (OSError, ValueError, LookupError, TypeError, ArrowException):
            notes.append(f"the prepared rows in {entry} were damaged, and were made again")
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                os.utime(entry)  # it is the last one used
            return dataclasses.replace(data, cached=True)
    try:
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder))
        try:
            make(aside)
            data = _load(aside, verify=False)
            if entry is not None:
                _put(aside, entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # what is loaded stays readable
    except OSError as error:
        raise unwritable(error) from error
    data.notes += notes
    return data


def seal(folder: Path, drafts: Iterable[Draft], notes: list[str], known: Issue | None) -> None:
    """Complete an entry whose rows and examples are written; ``known`` is that of ``Data``."""
    splits = [_described(folder, draft) for draft in drafts]
    body = {"splits": splits, "notes": notes, "known": dataclasses.asdict(known) if known else None}
    text = json.dumps(body)
    (folder / "entry.json").write_text(json.dumps({"digest": _digest(text), "body": text}), encoding="utf-8")


def rows_file(folder: Path, name: str) -> Path:
    """Where the rows of a split stand in an entry."""
    return folder / f"{name}.arrow"


def examples_file(folder: Path, name: str) -> Path:
    """Where the examples of a split stand in an entry."""
    return folder / f"{name}.jsonl"


def key(data: DataSettings, renderer: Renderer, max_length: int | None, seed: int, kind: Kind) -> str | None:
    """Digest of all that decides the rows; None where they come from elsewhere than from files.

    Files that change while they are read are for the caller to find: their key is another afterwards.
    """
    files = _file_digests(data)
    tokenizer = _tokenizer_facts(renderer.tokenizer)
    if files is None or tokenizer is None:
        return None
    settings = dataclasses.asdict(data) | {"cache": None, "metric": None}
    template = dataclasses.asdict(renderer.settings)
    parts = [files, tokenizer, settings, template, renderer.train_on, max_length, seed, kind, _code()]
    return _digest(json.dumps(parts, default=repr))


def _file_digests(data: DataSettings) -> list[list[str]] | None:
    """Names and contents of all files; None for a hub data set and for what cannot be read."""
    found = []
    for where, given in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        for entry in given if isinstance(given, list) else [given] if given else []:
            path = str(entry["path"] if isinstance(entry, dict) else entry)
            try:
                files = [f"{file} {content_digest(file).hex()}" for file in local_files(path, where)]
            except (OSError, ConfigError):
                return None  # the reader says it, with everything else that is wrong
            if not files:
                return None
            found.append([where, *files])
    return found


def _tokenizer_facts(tokenizer: Any) -> list[str] | None:
    """What a tokenizer does to text, and what templates read of it; None where that cannot be known."""
    kind = type(tokenizer)
    if not tokenizer.is_fast or kind.__module__.startswith("transformers_modules"):  # code of the model's own
        return None
    template = str(tokenizer.chat_template)
    today = str(date.today()) if "strftime_now" in template else ""
    split = getattr(tokenizer, "split_special_tokens", False)
    special = json.dumps([tokenizer.special_tokens_map, split], default=str, sort_keys=True)
    return [kind.__name__, _digest(tokenizer.backend_tokenizer.to_str()), template, special, today]


@cache
def _code() -> list[str]:
    """The version of everything that turns rows into tokens: our own files, the libraries, Unicode."""
    own = [f"{file.name} {content_digest(file).hex()}" for file in sorted(PACKAGE.glob("*.py"))]
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    return [*own, *libraries, platform.python_version(), unicodedata.unidata_version]


def _described(folder: Path, draft: Draft) -> dict[str, Any]:
    files = (rows_file(folder, draft.name), examples_file(folder, draft.name))
    return {
        "name": draft.name,
        "sources": [source.record() for source in draft.sources],
        "counts": draft.counts,
        "firsts": draft.firsts,
        "totals": draft.totals.record(),
        "files": {file.name: content_digest(file).hex() for file in files},
    }


def _load(folder: Path, verify: bool) -> Data:
    """The rows of an entry. Raises ``Damaged``, or what reading damaged files raises."""
    entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    if _digest(entry["body"]) != entry["digest"]:
        raise Damaged(folder)
    body = json.loads(entry["body"])
    splits = [_split(folder, facts, verify) for facts in body["splits"]]
    known = Issue(**body["known"]) if body["known"] else None
    return Data(splits[0], splits[1] if len(splits) > 1 else None, body["notes"], known)


def _split(folder: Path, facts: dict[str, Any], verify: bool) -> Split:
    for name, digest in facts["files"].items() if verify else ():
        if content_digest(folder / name).hex() != digest:
            raise Damaged(folder / name)
    name, totals = facts["name"], Totals.read(facts["totals"])
    sources = [
        Source(source["path"], source["format"], source["fingerprint"], source["rows"])
        for source in facts["sources"]
    ]
    examples = Examples.of(examples_file(folder, name))
    rows = TokenRows.of(rows_file(folder, name), totals)
    return Split(name, sources, examples, rows, Counter(facts["counts"]), facts["firsts"])


def _put(aside: Path, entry: Path) -> None:
    """Move a finished entry to its place; where another process is faster, its entry stays."""
    try:
        aside.rename(entry)
    except OSError:
        return
    _tidy(entry)


def _tidy(newest: Path) -> None:
    """Remove the entries used longest ago, and what killed processes left."""
    number = total = 0
    for when, size, folder in sorted(_used(newest.parent), reverse=True):
        if folder.name.startswith(_ASIDE):
            gone = time.time() - when > _ABANDONED
        else:
            number, total = number + 1, total + size
            gone = folder != newest and (number > _KEPT or total > _KEPT_BYTES)
        if gone:
            shutil.rmtree(folder, ignore_errors=True)


def _used(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each entry was used last, and its bytes."""
    for entry in folder.iterdir():
        with suppress(OSError):  # another process may have removed it
            yield entry.stat().st_mtime, sum(file.stat().st_size for file in entry.glob("*")), entry


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
