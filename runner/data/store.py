"""The store of prepared data: what an earlier run prepared is found by key, checked and read again.

An entry is a folder: of each split its sequences and its examples (Arrow), and ``entry.json``, which holds
the rest and the checksum of every file. Its name is a digest of all that decides the sequences. It is written
as a temporary folder and renamed; one whose checksums do not match is prepared again.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

from pyarrow import ArrowException

from runner.config.settings import DataSettings
from runner.core.atomic import xxh3_of_file
from runner.core.code_digest import code_digest
from runner.core.errors import ConfigError, Issue
from runner.core.paths import PACKAGE, cache_dir
from runner.data.example_store import Examples, open_dataset
from runner.data.files import content_digest, local_files
from runner.data.formats import Kind
from runner.data.reader import Source
from runner.data.sequences import Sequences, Totals
from runner.data.splits import Data, Split
from runner.data.template import Renderer

_KEPT, _KEPT_BYTES = 20, 20 * 10**9  # entries, those used last; the last one may be larger
_ABANDONED = 24 * 3600.0  # seconds after which a folder that was never finished belongs to no running process
_TEMPORARY = ".writing-"
_LIBRARIES = ("datasets", "transformers", "tokenizers", "jinja2", "pyarrow")


class Damaged(ValueError):
    """An entry that is not what was written."""


def load_or_make(key: str | None, keep: bool, make: Callable[[Path], Data]) -> Data:
    """The data of a key, which ``make`` prepares in a temporary folder if it is not there.

    ``make`` writes the files of ``sequences_file`` and ``examples_file``. They are kept for the next run
    where ``keep`` says so and there is a key. Raises ``ConfigError`` where nothing can be written.
    """
    notes = []
    try:
        entry = cache_dir() / "rows" / key if key and keep else None
        if entry is not None and entry.is_dir():
            if data := _find(entry):
                return data
            notes.append(f"the prepared rows in {entry} were damaged, and were prepared again")
        with temporary_folder() as temporary:
            data = make(temporary)
            if entry is not None:
                _put(data, temporary, entry)
    except OSError as error:
        message = f"prepared rows cannot be written there: {error}"
        raise ConfigError(
            Issue(str(cache_dir() / "rows"), message, "RUNNER_CACHE=FOLDER moves it")
        ) from error
    data.notes += notes
    return data


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for rows in the cache, which is removed at the end; what is memory-mapped stays readable.

    Raises ``OSError`` where nothing can be written.
    """
    folder = cache_dir() / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sequences_file(folder: Path, name: str) -> Path:
    """Where the sequences of a split stand in an entry."""
    return folder / f"{name}.arrow"


def examples_file(folder: Path, name: str) -> Path:
    """Where the examples of a split stand in an entry."""
    return folder / f"{name}.examples.arrow"


def data_key(
    data: DataSettings, renderer: Renderer, max_length: int | None, seed: int, kind: Kind
) -> str | None:
    """Digest of all that decides the sequences; None where they come from elsewhere than from files.

    Files that change while they are read are for the caller to find: their key is another afterwards.
    """
    files = _file_digests(data)
    tokenizer = _tokenizer_facts(renderer.tokenizer)
    if files is None or tokenizer is None:
        return None
    settings = dataclasses.asdict(data) | {"cache": None, "metric": None}
    template = dataclasses.asdict(renderer.settings) | {"chat_template_file": None}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    versions += [platform.python_version(), unicodedata.unidata_version]
    code = code_digest([PACKAGE / "data"])
    parts = [files, tokenizer, settings, template, renderer.train_on, max_length, seed, kind, code, versions]
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
                return None  # the reader reports it, with everything else that is wrong
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


def _find(entry: Path) -> Data | None:
    """The data of an entry; one that is damaged is removed."""
    try:
        data = _read(entry)
    except (OSError, ValueError, LookupError, TypeError, ArrowException):
        shutil.rmtree(entry, ignore_errors=True)
        return None
    with suppress(OSError):
        os.utime(entry)  # it is the last one used
    return data


def _put(data: Data, temporary: Path, entry: Path) -> None:
    """Complete a temporary folder and rename it; where another process was faster, its entry stays."""
    overlap = dataclasses.asdict(data.overlap_issue) if data.overlap_issue else None
    splits = [_described(temporary, split) for split in data.splits]
    text = json.dumps({"splits": splits, "notes": data.notes, "overlap_issue": overlap})
    content = json.dumps({"digest": _digest(text), "body": text})
    (temporary / "entry.json").write_text(content, encoding="utf-8")
    try:
        temporary.rename(entry)
    except OSError:
        return
    _tidy(entry)


def _described(folder: Path, split: Split) -> dict[str, Any]:
    files = (sequences_file(folder, split.name), examples_file(folder, split.name))
    return {
        "name": split.name,
        "sources": [source.record() for source in split.sources],
        "counts": split.counts,
        "first_seen": split.first_seen,
        "totals": split.rows.totals.record(),
        "files": {file.name: xxh3_of_file(file) for file in files},
    }


def _read(folder: Path) -> Data:
    """The data of an entry. Raises ``Damaged``, or what reading damaged files raises."""
    entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    if _digest(entry["body"]) != entry["digest"]:
        raise Damaged(folder)
    body = json.loads(entry["body"])
    splits = [_read_split(folder, facts) for facts in body["splits"]]
    overlap = Issue(**body["overlap_issue"]) if body["overlap_issue"] else None
    return Data(splits[0], splits[1] if len(splits) > 1 else None, body["notes"], overlap, cached=True)


def _read_split(folder: Path, facts: dict[str, Any]) -> Split:
    for name, digest in facts["files"].items():
        if xxh3_of_file(folder / name) != digest:
            raise Damaged(folder / name)
    name = facts["name"]
    sources = [
        Source(source["path"], source["format"], source["fingerprint"], source["rows"], source["files"])
        for source in facts["sources"]
    ]
    examples = Examples.open(examples_file(folder, name))
    rows = Sequences(open_dataset(sequences_file(folder, name)), Totals.read(facts["totals"]))
    return Split(name, sources, examples, rows, Counter(facts["counts"]), facts["first_seen"])


def _tidy(newest: Path) -> None:
    """Remove the entries used longest ago, and what killed processes left."""
    number = total = 0
    for when, size, folder in sorted(_used(newest.parent), reverse=True):
        if folder.name.startswith(_TEMPORARY):
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
