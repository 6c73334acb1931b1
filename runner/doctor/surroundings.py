"""What stands around the device: Python and its packages, memory, disks, caches, git and the hub."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Thread

from runner.core import environment
from runner.doctor.finding import Finding, checked

_SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_NAME = "recipe-runner"
_LEAST_FREE = 20 * 2**30  # of the caches' disk: the weights of an 8B model in bf16 are 16 GiB
_SECONDS = 1.0  # that are spent on adding up a folder
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of version 2, and of 1
_PATIENCE = 3.0  # seconds until the hub is taken to be out of reach


def packages() -> Iterator[Finding]:
    """Python, the libraries that decide a result, and those that are not what the runner is tested with."""
    yield Finding("Python", environment.python_version())
    versions = environment.package_versions()
    yield Finding("libraries", ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions))
    wrong = list(_unmet())
    if wrong:
        yield Finding("requirements", "; ".join(wrong), ok=False, advice="pip install -c constraints.txt .")


def _unmet() -> Iterator[str]:
    """Each requirement of the installed runner that is missing, or has another version."""
    from packaging.requirements import Requirement

    try:
        wanted = requires(_NAME) or []
    except PackageNotFoundError:
        return
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name} is missing"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is not {requirement.specifier}"


def memory() -> Iterator[Finding]:
    """Memory and cores of the host, and variables that change numbers or speed."""
    import psutil

    found = psutil.virtual_memory()
    free, total = found.available / 2**30, found.total / 2**30
    words = f"{free:.1f} of {total:.1f} GiB free, {len(environment.available_cores())} cores"
    limit = _memory_limit()
    bound = f"; its container is ended above {limit / 2**30:.1f} GiB" if limit and limit < found.total else ""
    yield Finding("memory", words + bound)
    if variables := environment.variables():
        yield Finding("environment", ", ".join(f"{name}={value}" for name, value in variables.items()))


def _memory_limit() -> int | None:
    """Bytes that the process's container may have, of which the host's numbers say nothing; None for all."""
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there; "max" is no number
            return int((_CGROUP / name).read_text(encoding="utf-8"))
    return None


def disks(output: Path) -> Iterator[Finding]:
    """The folders that models, rows and compiled code are kept in, their size, and the room that is left."""
    folders = {
        "run folders": (lambda: output, "output_dir=FOLDER"),
        "runner's cache": (_runner_cache, "RUNNER_CACHE=FOLDER"),
        "hub's cache": (_hub_cache, "HF_HOME=FOLDER"),
    }
    for name, (place, other) in folders.items():
        # each on its own: one that cannot be reached says nothing of the others
        yield from checked(name, partial(_disk, name, place, other, sized=name != "run folders"))


def _runner_cache() -> Path:
    from runner.core.paths import cache_dir

    return cache_dir()


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _disk(name: str, place: Callable[[], Path], other: str, sized: bool) -> Iterator[Finding]:
    """One folder; ``other`` is what names another one instead."""
    folder = place()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    advice = ""
    if not there.is_dir():
        advice = f"{there} is a file: {other}"
    elif not os.access(there, os.W_OK | os.X_OK):
        advice = f"it cannot be written: {other}"
    elif free < _LEAST_FREE:
        advice = f"an 8B model in bf16 needs 16 GiB: {other}"
    size = f"{_size(folder)}, " if sized else ""
    yield Finding(name, f"{folder}, {size}{free / 2**30:.0f} GiB free", ok=not advice, advice=advice)


def _size(folder: Path) -> str:
    """Of all files below, links left out; 'over' where it takes too long to say. Other processes may add and
    remove files meanwhile."""
    total, until = 0, time.monotonic() + _SECONDS
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # it is gone, or may not be looked at
                found = os.lstat(os.path.join(place, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
            if time.monotonic() > until:
                return f"over {total / 2**30:.1f} GiB"
    return f"{total / 2**30:.1f} GiB"


def git() -> Iterator[Finding]:
    """Whether runs can record the commit that they were made with."""
    well = shutil.which("git") is not None
    advice = "" if well else "run.json cannot say which commit a run was made with"
    yield Finding("git", "installed" if well else "not installed", ok=well, advice=advice)


def hub() -> Iterator[Finding]:
    """Whether the hub answers, and whether there is a token for gated models."""
    from huggingface_hub import constants, get_token

    from runner.models.hub import offline

    token = "with a token" if get_token() else "without a token: gated models need `hf auth login`"
    if offline():
        yield Finding("hub", "this machine is set to be offline: models come from the cache or model.path")
        return
    began = time.monotonic()
    if error := _ask(constants.ENDPOINT):
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status != 404:  # a mirror without this model answers too
            yield _no_hub(constants.ENDPOINT, type(error).__name__, status)
            return
    yield Finding("hub", f"{constants.ENDPOINT} answers in {time.monotonic() - began:.1f} s, {token}")


def _ask(endpoint: str) -> Exception | None:
    """What goes wrong with a question to the hub; the client raises many kinds of error.

    Its timeout does not bound how long a name is looked up, which takes up to half a minute where no name
    server answers.
    """
    from huggingface_hub import HfApi

    errors: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi(endpoint=endpoint).model_info("openai-community/gpt2", timeout=_PATIENCE)
        except Exception as error:
            errors.append(error)
        else:
            errors.append(None)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * _PATIENCE)  # to connect, and to read
    return errors[0] if errors else TimeoutError()


def _no_hub(endpoint: str, reason: str, status: int | None) -> Finding:
    """Why the hub is of no use: its answer for a public model, or that there was none."""
    advice = "model.path=FOLDER, HF_ENDPOINT=MIRROR, or HF_HUB_OFFLINE=1 to use the cache at once"
    if status in (401, 403):  # nobody needs a token for a public model
        found, advice = f"{endpoint} refuses the token ({status})", "`hf auth login`, or unset HF_TOKEN"
    elif status:
        found = f"{endpoint} answers with an error ({status})"
    else:
        found = f"{endpoint} does not answer ({reason})"
    return Finding("hub", found, ok=False, advice=advice)
