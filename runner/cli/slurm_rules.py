"""What ``hydra.launcher`` may say with ``hydra/launcher=slurm``: what sbatch and submitit can be given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.core.errors import Issue
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml

TARGET = "hydra_plugins.slurm_launcher.SlurmLauncher"
# These run something on the cluster, and are not taken from a file of someone else's.
RUN_CODE = ("setup", "python", "srun_args", "sbatch_args")
_LEAST = {
    "array_parallelism": 1,
    "signal_delay_s": 1,
    "requeues": 0,
    "cpus_per_task": 1,
}
_NEEDED = ("array_parallelism", "signal_delay_s", "requeues")
_TIME = re.compile(r"\d+(:\d{1,2}){1,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")
_DAY = 24 * 60
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Options of sbatch that the launcher decides: a job of a sweep is one process that is requeued and resumes.
_OWN = {
    "array",
    "error",
    "job-name",
    "no-requeue",
    "nodes",
    "ntasks",
    "open-mode",
    "output",
    "requeue",
    "signal",
}
_ARGUMENT = re.compile(r"--[a-z][a-z0-9-]*(=.*)?")


def slurm_options(composed: DictConfig) -> dict[str, Any] | None:
    """The options of ``hydra/launcher=slurm``; None with another launcher."""
    given = composed.hydra.launcher
    if not OmegaConf.is_dict(given):  # a file may have anything there, which ``check_system`` refuses
        return None
    launcher: Any = OmegaConf.to_container(given, resolve=False)
    if launcher.get("_target_") != TARGET:
        return None
    return {name: launcher.get(name) for name in _names()}


@cache
def _names() -> list[str]:
    return [
        name for name in read_yaml(CONFIG_DIR / "hydra" / "launcher" / "slurm.yaml") if name != "_target_"
    ]


def check_slurm(composed: DictConfig, multirun: bool) -> Iterator[Issue]:
    """An issue for each wrong value of the options, whose names have been checked."""
    options = slurm_options(composed)
    if options is None:
        return
    if not multirun:
        message = "submits the jobs of a sweep, and this is one run"
        yield Issue("hydra/launcher=slurm", message, "add -m, or submit the command: docs/cluster.md")
    chosen = OmegaConf.select(composed, "sweep.devices")
    if OmegaConf.is_list(chosen):
        hint = "sweep.devices=8 splits the grid over eight tasks, hydra.launcher.gres=gpu:1 gives each a GPU"
        yield Issue("sweep.devices", "numbers of devices mean nothing to SLURM, which has its own", hint)
    for name, value in options.items():
        if problem := _problem(name, value):
            yield Issue(f"hydra.launcher.{name}={value}", *problem)


def _problem(name: str, value: Any) -> tuple[str, str] | None:
    """What is wrong with the value of an option, and what is allowed."""
    if value is None:
        return ("is needed", "a number") if name in _NEEDED else None
    if name in _LEAST:
        least = _LEAST[name]
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if fine else ("is out of range", f"allowed: a whole number, at least {least}")
    if name == "time":
        return _time(value)
    if name in ("setup", "srun_args", "sbatch_args"):
        fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
        hint = f"a list of texts: 'hydra.launcher.{name}=[\"...\"]'"
        arguments = _arguments(value) if fine and name == "sbatch_args" else None
        return arguments or _unprintable(value) if fine else ("is no list of texts", hint)
    if isinstance(value, (bool, float, list, dict)) or value == "":
        return "is no value of an option of sbatch", "a text or a whole number"
    return _unprintable([value])


def _time(value: Any) -> tuple[str, str] | None:
    """YAML reads 12:00:00 without quotes as the number of its seconds, which would be minutes here."""
    allowed = f"minutes up to {_DAY}, HH:MM:SS or D-HH:MM:SS; in a file in quotes: '12:00:00'"
    text = str(value)
    fine = 0 < int(text) <= _DAY if text.isdecimal() else _TIME.fullmatch(text)
    return None if fine else ("is no time", allowed)


def _arguments(values: list[str]) -> tuple[str, str] | None:
    for text in values:
        if not _ARGUMENT.fullmatch(text):
            return f"{text!r} is no long option of sbatch", "as in [--reservation=course, --exclusive]"
        if text[2:].partition("=")[0] in _OWN:
            return f"{text!r} is decided by the launcher", "leave it out"
    return None


def _unprintable(values: list[Any]) -> tuple[str, str] | None:
    """A line end would put what follows it into the batch script as a command."""
    if any(_CONTROL.search(str(value)) for value in values):
        return "has a line end or another control character", "one line"
    return None
