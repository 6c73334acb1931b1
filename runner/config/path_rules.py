"""Whether the things that paths of the config name are there: data, adapters, checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from runner.config.origins import Origins
from runner.core.errors import Issue, nearest
from runner.core.paths import EXAMPLES, ROW_FILES, SWEEP_FILE
from runner.core.process.folder_lock import unwritable

# as the hub's client has it: no -- or .., no mark at either end, nothing like a git address
_REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
ROWS_HINT = "add data=file data.path=...: a file, a folder, a hub name, or embedded:orders_train"


def check_paths(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """An issue for each path of data, adapter and checkpoint that does not exist, and a repository's name."""
    repository = values.get("push_to")
    if isinstance(repository, str) and not (_REPOSITORY.fullmatch(repository) and len(repository) <= 96):
        message = f"{repository!r} is not a repository name"
        yield Issue(origins.where("push_to"), message, "OWNER/NAME, as in the hub's addresses")
    yield from _check_data(values.get("data") or {}, values.get("recipe"), values.get("adapter"), origins)
    for key in ("adapter", "resume"):
        given = values.get(key)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str) and (key, value) != ("resume", "auto") and not exists(value):
                yield not_there(key, value, nearest_file(value), origins)


def _check_data(data: dict[str, Any], recipe: Any, adapter: Any, origins: Origins) -> Iterator[Issue]:
    """The rows of a recipe; a chat reads none, and a merge compares two models on any that there are."""
    if recipe == "chat":
        return
    # asked only here: to find what the user said, the config is composed once more (50 ms)
    if recipe == "merge" and not any(map(origins.said_by_user, ("data.path", "data.eval_path"))):
        return
    # where an adapter brings no rows, its recipe says so: adapters.check_rows
    if not data.get("path") and recipe != "merge" and not (adapter and not origins.rank("data.path")):
        yield Issue(origins.where("data.path"), "data.path must be given", ROWS_HINT)
    for key in ("data.path", "data.eval_path"):
        given = data.get(key.partition(".")[2])
        if key == "data.path" and (not given or (recipe == "evaluate" and held_out_alone(data))):
            continue
        if not isinstance(given, list):
            yield from _check_source(key, given, origins)
            continue
        for number, source in enumerate(given):
            yield from _check_source(f"{key}.{number}", source, origins)


def held_out_alone(data: dict[str, Any]) -> bool:
    """Whether rows are held out in files of their own, and those that were trained on are gone."""
    return bool(data.get("eval_path")) and bool(missing(data.get("path"))) and not missing(data["eval_path"])


def missing(given: Any) -> list[str]:
    """Local paths of a data source, or a list of these, that do not exist."""
    sources = given if isinstance(given, list) else [given]
    paths = [source.get("path") if isinstance(source, dict) else source for source in sources]
    return [str(path) for path in paths if isinstance(path, str) and looks_local(path) and not exists(path)]


def _check_source(key: str, source: Any, origins: Origins) -> Iterator[Issue]:
    allowed = ("path", "weight", "format", "columns")
    path = source.get("path") if isinstance(source, dict) else source
    if isinstance(source, dict):
        for name in source:
            if name not in allowed:
                yield Issue(origins.where(key), f"unknown key '{key}.{name}'", nearest(name, allowed))
        weight = source.get("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            yield Issue(
                origins.where(key),
                f"{key}.weight={weight!r} is not a number above 0",
                "2 takes every row twice",
            )
    if path is None and not isinstance(source, dict):
        return
    if not isinstance(path, str) or not path:
        hint = "text, or {path: ..., weight: 0.5}"
        yield Issue(origins.where(key), f"{key}: {source!r} is not a data source", hint)
    elif path.startswith("embedded:"):
        name, known = path.removeprefix("embedded:"), [file.stem for file in EXAMPLES.glob("*.jsonl")]
        if name not in known:
            yield Issue(origins.where(key), f"{key}: no embedded data set {name!r}", nearest(name, known))
    elif exists(path):
        return
    elif looks_local(path):
        yield not_there(key, path, nearest_file(path), origins)
    elif meant := _mistyped(path):
        hint = f"did you mean {meant!r}? A data set of the hub is named with its owner"
        yield not_there(key, path, hint, origins)


def not_there(key: str, path: str, hint: str, origins: Origins) -> Issue:
    """The issue of a path that leads nowhere; one in a file, such as the config of a run, may have been
    written in another working directory."""
    if not origins.typed(key) and not Path(path).expanduser().is_absolute():
        hint += f"; it is relative to {Path.cwd()}, where this command was started"
    return Issue(origins.where(key), f"{key}: nothing is at {path!r}", hint.removeprefix("; "))


def _mistyped(path: str) -> str | None:
    """The local file of rows that a path means which could also be a hub name: its ending or name is close.

    A hub that cannot be reached is asked for 23 seconds.
    """
    given = Path(path)
    try:
        names = sorted(entry.name for entry in given.parent.iterdir() if entry.suffix.lower() in ROW_FILES)
    except OSError:
        names = []
    stems = [name for name in names if Path(name).stem.lower() == given.stem.lower()]
    close = stems or get_close_matches(given.name, names, n=1, cutoff=0.8)
    if not close and (near := get_close_matches(given.stem, map(_stem, names), n=1, cutoff=0.8)):
        close = [name for name in names if _stem(name) == near[0]]
    if close:
        return str(given.parent / close[0])
    # no name of a data set ends like this: a file that is not there
    ending = get_close_matches(given.suffix.lower(), ROW_FILES, n=1, cutoff=0.6)
    return str(given.with_suffix(ending[0])) if ending else None


def _stem(name: str) -> str:
    return Path(name).stem


def looks_local(path: str) -> bool:
    """Whether a path can only mean this machine: a hub name is NAME or OWNER/NAME without a file's ending."""
    endings = (*ROW_FILES, ".gguf", ".txt", ".zip", ".gz")
    several = path.count("/") > 1 and ":" not in path
    return path.startswith((".", "/", "~")) or path.endswith(endings) or several


def exists(path: str) -> bool:
    """Whether a file or folder is there and can be reached."""
    try:
        return bool(path) and Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long, a folder that may not be entered, no such user after ~
        return False


def nearest_file(path: str) -> str:
    """Say what is there instead, in the nearest folder that exists."""
    try:
        folder = Path(path).expanduser().parent
        while not folder.is_dir():
            folder = folder.parent
        found = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    except (OSError, RuntimeError):
        return ""
    return f"in {folder}/: {nearest(Path(path).name, found)}" if found else f"{folder}/ is empty"


def check_sweep_folder(folder: Path) -> Issue | None:
    """An issue when a folder cannot be, or holds something that is no sweep."""
    try:
        if not folder.exists() or (folder / SWEEP_FILE).is_file():
            return None
    except OSError as error:  # a name too long
        return unwritable(folder, error)
    if folder.is_dir() and all(entry.name == "jobs" for entry in folder.iterdir()):
        return None  # a sweep that had config errors and ran no job
    message = f"{folder} is not empty and is not a sweep folder"
    return Issue(f"output_dir={folder}", message, "name a new folder, or leave output_dir out")
