"""What a config may tell Hydra: the sweeper that chooses the values, and no classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra.conf as hydra_conf
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from runner.cli.slurm_rules import RUN_CODE, TARGET
from runner.config.objective import Objectives
from runner.config.path_rules import check_sweep_folder
from runner.config.sweep_rules import own_metrics, section
from runner.config.trust import runs_code
from runner.core.errors import Issue, nearest
from runner.core.metric_names import find_metric
from runner.core.paths import CONFIG_DIR
from runner.core.process.posix import POSIX
from runner.core.yaml_reader import read_yaml

# Keys of Hydra that run code or change the process around the run: why not, and what instead.
_CLOSED = {
    "callbacks": ("no class may be named here", "leave it out"),
    "job.env_set": ("a config does not set the environment", "set variables in the shell"),
    "job.env_copy": ("a config does not read the environment", "set variables in the shell"),
    "verbose": ("has no effect on a run", "set TRANSFORMERS_VERBOSITY=debug in the shell"),
    "searchpath": ("a config does not say where others are", "add your folder with --config-dir"),
}
# The folder of a cell in the sweep's: with Hydra's own launcher named by all overrides.
SUBDIR = "${folder_name:${hydra.job.override_dirname}}"
# What a file may say of the sweeper beside its class; everything else of it, and of the launcher what runs
# something, stays as the plugin has it, or is said on the command line.
_OF_FILES = ("params", "direction", "study_name", "n_trials", "n_jobs", "max_failure_rate", "max_batch_size")
_SAMPLER = "hydra.sweeper.sampler"
_OWN_LAUNCHERS = (".PackedLauncher", ".SlurmLauncher")
# A study in a file of this machine; a server is sent the sweep, and Redis answers with pickles.
_STUDY_FILE = re.compile(r"sqlite:///[^?]+")


def check_classes(composed: DictConfig) -> Iterator[Issue]:
    """What Hydra itself would import, call or set: a config from someone else must not run code.

    The rule for names of classes: exactly one that an installed plugin registers, at exactly the key for it.
    Nothing is looked up that an interpolation names: it could stand for something else when Hydra reads it.
    """
    if OmegaConf.is_interpolation(composed, "hydra"):
        yield Issue("hydra", "is Hydra's own section, not an interpolation", "leave it out")
        return
    values: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    for key, (message, hint) in _CLOSED.items():
        if _inside(values, key):
            yield Issue(f"hydra.{key}", message, hint)
    for key in ("job_logging", "hydra_logging"):
        if values.get(key) not in _shipped(key):
            message = "a logger may name classes and files"
            yield Issue(f"hydra.{key}", message, "leave it out: the runner prints its own")
    if _inside(values, "sweep.subdir") != SUBDIR:
        yield Issue("hydra.sweep.subdir", "cells are named by what differs", "leave it out")
    typed = [str(text).lstrip("+").partition("=")[0] for text in _inside(values, "overrides.hydra") or []]
    for part in ("launcher", "sweeper"):
        yield from _check_plugin(part, values.get(part), typed)
    yield from _check_axes_of_file(_inside(values, "sweeper.params"), typed)


def _check_plugin(part: str, given: Any, typed: list[str]) -> Iterator[Issue]:
    """The class of a launcher or sweeper, and which of its settings may differ from the plugin's own."""
    path = f"hydra.{part}"
    options = _registered(part)
    target = given.get("_target_") if isinstance(given, dict) else given
    if target not in options:
        yield Issue(f"{path}._target_", f"{target!r} is not allowed", f"choose one: hydra/{part}=...")
        return
    for name, value in given.items():
        key = f"{path}.{name}"
        if name == "_target_" or value == options[target].get(name):
            continue
        if key == _SAMPLER:
            yield from _check_sampler(value)
        elif name == "custom_search_space":
            yield Issue(key, "no function may be named here", "write the axes: lora.r=8,16")
        elif name not in options[target]:
            known = [each for each in options[target] if not each.startswith("_")]
            yield Issue(key, f"{target.rpartition('.')[2]} has no such setting", nearest(name, known))
        elif _names_class(value):
            yield Issue(key, "no class may be named here", "leave it out")
        elif not (key in typed or _of_files(part, target, name)) and not (
            name == "storage" and _STUDY_FILE.fullmatch(str(value))
        ):
            message = f"{name}={value!r} counts on the command line only"
            yield Issue(key, message, f"if you want it, add it there: {key}={value}")


def _of_files(part: str, target: str, name: str) -> bool:
    """Whether a file may say a setting."""
    return name in _OF_FILES if part == "sweeper" else target == TARGET and name not in RUN_CODE


def _check_sampler(value: Any) -> Iterator[Issue]:
    options = _registered("sweeper", "sampler")
    target = value.get("_target_") if isinstance(value, dict) else value
    if target not in options:
        hint = f"a sampler: {nearest(target, options)}"
        yield Issue(f"{_SAMPLER}._target_", f"{target!r} is not allowed", hint)
        return
    for name, item in value.items():
        if name == "_target_" or item == options[target].get(name):
            continue
        if name not in options[target] or name.startswith("_"):
            yield Issue(f"{_SAMPLER}.{name}", "no such setting", nearest(name, options[target]))
        elif isinstance(item, (dict, list, str)):  # seeds, counts and switches: all others are objects
            yield Issue(f"{_SAMPLER}.{name}", f"{item!r} is not allowed", "a number, true or false")


def _names_class(value: Any) -> bool:
    """Whether a value has a key that Hydra's instantiate obeys, or an interpolation that may become one."""
    if isinstance(value, dict):
        return any(str(key).startswith("_") or _names_class(item) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_names_class, value))
    return isinstance(value, str) and "${" in value.replace("\\${", "")


def _check_axes_of_file(params: Any, typed: list[str]) -> Iterator[Issue]:
    """The axes in a file are read like a command line, but come from the author of the file."""
    if not isinstance(params, dict) or "hydra.sweeper.params" in typed:
        return
    for key, values in params.items():
        if f"hydra.sweeper.params.{key}" not in typed and any(
            runs_code(f"{key}={value}") for value in re.split(r"[\s,()'\"]+", str(values))
        ):
            message = f"{key}={values} runs code from elsewhere"
            yield Issue(
                "hydra.sweeper.params", message, "if you trust it, write the axis on the command line"
            )


def _inside(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _registered(*group: str) -> dict[str, dict[str, Any]]:
    """The options that installed plugins register in a group of Hydra's, or the project's own ``conf`` has:
    their settings by their class."""
    found = dict(_packaged(*group))
    for name in ConfigStore.instance().list("/".join(("hydra", *group))):
        if name.endswith(".yaml"):
            node = ConfigStore.instance().load("/".join(("hydra", *group, name))).node
            settings: Any = OmegaConf.to_container(node, resolve=False)
            settings.pop("defaults", None)
            found[settings.get("_target_")] = settings
    return found


@cache
def _packaged(*group: str) -> dict[str, dict[str, Any]]:
    options = [read_yaml(file) for file in CONFIG_DIR.joinpath("hydra", *group).glob("*.yaml")]
    return {settings["_target_"]: settings for settings in options}


def is_packed(composed: DictConfig) -> bool:
    """Whether the cells of a sweep are run by a launcher that trains several at once, here or on SLURM."""
    return str(OmegaConf.select(composed, "hydra.launcher._target_")).endswith(_OWN_LAUNCHERS)


def check_system(composed: DictConfig) -> Iterator[Issue]:
    """The processes of a sweep end with the one that started them, by what native Windows has not."""
    if not POSIX and is_packed(composed):
        message = "a sweep starts processes in a way that native Windows has not"
        yield Issue("-m", message, "start it in WSL, or add hydra/launcher=basic: one run after the other")


@cache
def _shipped(key: str) -> list[Any]:
    """The values of a group of Hydra's that its own options have."""
    folder = Path(hydra_conf.__path__[0]) / "hydra" / key
    return [read_yaml(file) for file in sorted(folder.glob("*.yaml"))]


def check_direction(
    composed: DictConfig, values: Mapping[str, Any], objectives: Objectives
) -> Iterator[Issue]:
    """A sweeper that looks for the best values must look in the direction of the deciding metric."""
    direction = OmegaConf.select(composed, "hydra.sweeper.direction")
    objective = objectives.get(str(values.get("recipe")))
    given_metric = section(values, "sweep").get("metric")
    metric = given_metric or next(iter(own_metrics(values, objective)), None)
    if direction is None or not isinstance(metric, str):
        return
    wanted = "maximize" if find_metric(metric).higher else "minimize"
    given = getattr(direction, "name", str(direction))
    if given != wanted:
        message = f"the best {metric} is the {'largest' if wanted == 'maximize' else 'smallest'}"
        hint = f"hydra.sweeper.direction={wanted}"
        yield Issue(f"hydra.sweeper.direction={given}", message, hint)


def check_sweep_dir(composed: DictConfig) -> Iterator[Issue]:
    """A folder that is not a sweep's is rejected before Hydra's sweeper writes a file into it."""
    held = composed.get("output_dir") and is_packed(composed)
    folder = Path(str(composed.output_dir)).expanduser() if held else None
    if folder and (issue := check_sweep_folder(folder)):
        yield issue
