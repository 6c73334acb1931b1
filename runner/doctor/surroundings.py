"""What stands around the device: Python and its packages, memory, disks, caches, git and the hub."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from runner.core import environment
from runner.doctor.finding import Finding

_SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_NAME = "recipe-runner"
_LEAST_FREE = 20 * 2**30  # of the caches' disk: the weights of an 8B model in bf16 are 16 GiB
_SECONDS = 1.0  # that are spent on adding up a folder
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free, total = found.available / 2**30, found.total / 2**30
    yield Finding("memory", f"{free:.1f} of {total:.1f} GiB free, {cores} cores")
    if variables := environment.variables():
        yield Finding("environment", ", ".join(f"{name}={value}" for name, value in variables.items()))


def disks(output: Path) -> Iterator[Finding]:
    """The folders that models, rows and compiled code are kept in, their size, and the room that is left."""
    from huggingface_hub import constants

    from runner.models.locate import cache_dir

    folders = {"runner's cache": cache_dir(), "hub's cache": Path(constants.HF_HUB_CACHE)}
    for name, folder in {"run folders": output, **folders}.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        size = f"{_size(folder)}, " if name in folders else ""
        advice = "" if writable else "it cannot be written: choose another folder"
        if writable and free < _LEAST_FREE:
            advice = "an 8B model in bf16 needs 16 GiB"
        words = f"{folder}, {size}{free / 2**30:.0f} GiB free"
        yield Finding(name, words, ok=writable and free >= _LEAST_FREE, advice=advice)


def _size(folder: Path) -> str:
    """Of all files below, links left out; 'over' where it takes too long to say."""
    total, until = 0, time.monotonic() + _SECONDS
    for place, _, files in os.walk(folder):
        for name in files:
            path = Path(place, name)
            if not path.is_symlink():
                total += path.stat().st_size
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
    from huggingface_hub import HfApi, constants, get_token

    from runner.models.hub import offline

    token = "with a token" if get_token() else "without a token: gated models need `hf auth login`"
    if offline():
        yield Finding("hub", "this machine is set to be offline: models come from the cache or model.path")
        return
    began = time.monotonic()
    try:
        HfApi(endpoint=constants.ENDPOINT).model_info("openai-community/gpt2", timeout=_PATIENCE)
    except Exception as error:  # the client raises many kinds, all of which mean: out of reach
        reason = type(error).__name__
        advice = "model.path=FOLDER, HF_ENDPOINT=MIRROR, or HF_HUB_OFFLINE=1 to use the cache at once"
        yield Finding("hub", f"{constants.ENDPOINT} does not answer ({reason})", ok=False, advice=advice)
        return
    yield Finding("hub", f"{constants.ENDPOINT} answers in {time.monotonic() - began:.1f} s, {token}")
