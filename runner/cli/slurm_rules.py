"""What ``hydra.launcher`` may say with ``hydra/launcher=slurm``: what sbatch and submitit can be given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.core.errors import Issue

TARGET = "hydra_plugins.slurm_launcher.SlurmLauncher"
# These run something on the cluster, and are not taken from a file of someone else's.
RUN_CODE = ("setup", "python", "srun_args", "additional_parameters")
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
_OWN = ("array", "error", "job-name", "no-requeue", "nodes", "ntasks", "open-mode", "output", "requeue", "signal")


def slurm_options(composed: DictConfig) -> dict[str, Any] | None:
    """The options of ``hydra/launcher=slurm``; None with another launcher."""
    launcher: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=False)
    if launcher.get("_target_") != TARGET:
        return None
    return {key: value for key, value in launcher.items() if key != "_target_"}


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
    if name in ("setup", "srun_args"):
        fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
        hint = f"a list of lines: 'hydra.launcher.{name}=[\"...\"]'"
        return _unprintable(value) if fine else ("is no list of texts", hint)
    if name == "additional_parameters":
        return _other_options(value)
    if isinstance(value, (bool, float, list, dict)) or value == "":
        return "is no value of an option of sbatch", "a text or a whole number"
    return _unprintable([value])


def _time(value: Any) -> tuple[str, str] | None:
    """YAML reads 12:00:00 without quotes as the number of its seconds, which would be minutes here."""
    allowed = f"minutes up to {_DAY}, HH:MM:SS or D-HH:MM:SS; in a file in quotes: '12:00:00'"
    text = str(value)
    fine = 0 < int(text) <= _DAY if text.isdecimal() else _TIME.fullmatch(text)
    return None if fine else ("is no time", allowed)


def _other_options(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, Mapping) or any(isinstance(item, (list, dict)) for item in value.values()):
        return "is no mapping", "options of sbatch by their long names: {reservation: course}"
    if taken := [key for key in value if str(key).lower() in _OWN]:
        return f"{taken[0]} is decided by the launcher", "leave it out"
    if wrong := [key for key in value if not re.fullmatch(r"[a-z][a-z0-9-]*", str(key))]:
        return f"{wrong[0]!r} is no long name of an option of sbatch", "as in {reservation: course}"
    return _unprintable(list(value.values()))


def _unprintable(values: list[Any]) -> tuple[str, str] | None:
    """A line end would put what follows it into the batch script as a command."""
    if any(_CONTROL.search(str(value)) for value in values):
        return "has a line end or another control character", "one line"
    return None
