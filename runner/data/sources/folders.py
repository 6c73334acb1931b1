"""Which files a path means: one file, or those of a folder, of which some may be another split's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runner.core.errors import ConfigError, Issue
from runner.core.file_kinds import other_kind
from runner.core.paths import EXAMPLES, ROW_FILES
from runner.data.rows.values import listed

# Words in the name of a file or folder that name a split, as the hub's own rules have them.
_SPLITS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "devset": "validation",
    "valset": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "testset": "test",
    "holdout": "test",
    "heldout": "test",
}
# Which of them a key takes, the best first.
_WANTED = {"data.path": ("train",), "data.eval_path": ("validation", "test")}
# Files that datasets writes beside the rows it saves, in which there are none.
_RECORDS = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json"}
_MOST_FILES = 10_000
_MOST_NAMED = 200


@dataclass
class Found:
    """The files that a path means, none for a name on the hub; ``notes`` say what is left out."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)

    def read_names(self, path: str) -> list[str]:
        """The files of a folder by their names in it; none for a path that is a file itself."""
        folder = Path(path).expanduser()
        below = (file for file in self.files if folder in file.parents)
        return [file.relative_to(folder).as_posix() for file in below][:_MOST_NAMED]


def find_files(path: str, key: str) -> Found:
    """The files of a path of ``key`` (data.path or data.eval_path), those of a folder in order.

    A folder is read with its subfolders. Where names say that some of its files are another split, those are
    left out. Raises ``ConfigError`` for a folder without rows, and for a pipe or device, which may never end.
    """
    if path.startswith("embedded:"):
        path = str(EXAMPLES / f"{path.removeprefix('embedded:')}.jsonl")
    local = Path(path).expanduser()
    if not local.is_dir():
        _check_regular(local, key)
        return Found([local] if local.exists() else [])
    files = sorted(_below(local, key, path))
    if not files:
        raise ConfigError(Issue(f"{key}={path}", f"the folder holds none of {', '.join(ROW_FILES)}"))
    for file in files:
        _check_regular(file, key)
    return _of_split(local, files, key)


def _below(folder: Path, key: str, path: str) -> Iterator[Path]:
    """Files with rows in a folder and below it; hidden ones are left out, and links to folders."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        saved = _saved(Path(place)) if "state.json" in names else None
        for name in names:
            if name.startswith(".") or name in _RECORDS or Path(name).suffix.lower() not in ROW_FILES:
                continue
            if saved is None or name in saved:
                count += 1
                yield Path(place) / name
        if count > _MOST_FILES:
            message = f"holds more than {_MOST_FILES:,} files of rows, in subfolders too"
            raise ConfigError(Issue(f"{key}={path}", message, "name a folder that holds the rows alone"))


def _saved(folder: Path) -> set[str] | None:
    """The files of rows that ``Dataset.save_to_disk`` names; what else lies there is its cache.

    None for a ``state.json`` of something else. Raises ``ConfigError`` for rows that are not stored whole.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = {str(entry["filename"]) for entry in state["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if state.get("_indices_files"):
        message = "was saved by an old version of datasets, with its choice of rows in another file"
        raise ConfigError(
            Issue(str(folder), message, "load it with datasets, flatten_indices(), save it again")
        )
    return names


def _check_regular(file: Path, key: str) -> None:
    if kind := other_kind(file):
        message = f"is {kind}, not a file: its rows would be waited for, perhaps for ever"
        raise ConfigError(Issue(f"{key}={file}", message, "save the rows as a file"))


def _of_split(folder: Path, files: list[Path], key: str) -> Found:
    """Those of a folder's files that are the split a key means, if their names tell any apart."""
    names = {file: file.relative_to(folder) for file in files}
    splits = {file: _split(name) for file, name in names.items()}
    known = set(splits.values()) - {None}
    wanted = next((split for split in _WANTED.get(key, ()) if split in known), None)
    others = known - {wanted, *(["train"] if key == "data.path" else [])}
    if not others or (wanted is None and None not in splits.values()):
        # no split is named, or only others, which are then what is meant
        named = (
            f"{folder}: all its files are other splits by their names: {', '.join(sorted(map(str, known)))}"
        )
        return Found(files, [named] if others else [])
    chosen = [file for file in files if splits[file] in ((wanted,) if wanted else (None,))]
    left = [str(names[file]) for file in files if file not in set(chosen)]
    what = f"the split {wanted!r} by their names" if wanted else "no other split by their names"
    read = listed(str(names[file]) for file in chosen)
    return Found(chosen, [f"{folder}: read {read}, which are {what}; not read: {listed(left)}"])


def _split(name: Path) -> str | None:
    """The split that a relative path names: of several the last, as in train/test/a or train_eval."""
    words = [word for part in (*name.parts[:-1], name.stem) for word in re.split(r"[^a-z]+", part.lower())]
    found = [_SPLITS[word] for word in words if word in _SPLITS]
    return found[-1] if found else None
