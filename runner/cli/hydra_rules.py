"""What a config may tell Hydra: the sweeper that chooses the values, and no classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra.conf as hydra_conf
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.path_rules import check_sweep_folder
from runner.config.settings import SweepSettings
from runner.core.errors import Issue
from runner.core.metric_names import find_metric

# Keys of Hydra that run code or change the process around the run: why not, and what instead.
_CLOSED = {
    "callbacks": ("no class may be named here", "leave it out"),
    "job.env_set": ("a config does not set the environment", "set variables in the shell"),
    "job.env_copy": ("a config does not read the environment", "set variables in the shell"),
    "searchpath": ("a config does not say where others are", "add your folder with --config-dir"),
}
# The folder of a cell in the sweep's: with Hydra's own launcher named by all overrides.
SUBDIR = "${folder_name:${hydra.job.override_dirname}}"
# Where Hydra itself takes launchers and sweepers from.
_PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")


def check_classes(hydra: DictConfig) -> Iterator[Issue]:
    """What Hydra itself would import, call or set: a config from someone else must not run code."""
    values: Any = OmegaConf.to_container(hydra, resolve=False)
    for key, (message, hint) in _CLOSED.items():
        if OmegaConf.select(hydra, key):
            yield Issue(f"hydra.{key}", message, hint)
    for key in ("job_logging", "hydra_logging"):
        if values.get(key) not in _shipped(key):
            message = "a logger may name classes and files"
            yield Issue(f"hydra.{key}", message, "leave it out: the runner prints its own")
    if values["sweep"].get("subdir") != SUBDIR:
        yield Issue("hydra.sweep.subdir", "cells are named by what differs", "leave it out")
    for path, value in _leaves({name: values.get(name) for name in ("launcher", "sweeper")}, "hydra"):
        name = path.rpartition(".")[2]
        own = path in ("hydra.launcher._target_", "hydra.sweeper._target_") and value.startswith(_PLUGINS)
        sampler = path.startswith("hydra.sweeper.") and str(value).startswith("optuna.samplers.")
        if name == "custom_search_space" and value:
            yield Issue(path, "no function may be named here", "write the axes: lora.r=8,16")
        elif name == "_target_" and not own and not sampler:
            allowed = "a sampler: optuna.samplers.TPESampler" if "sweeper" in path else "leave it out"
            yield Issue(path, f"{value!r} is not allowed", allowed)


@cache
def _shipped(key: str) -> list[Any]:
    """The values of a group of Hydra's that its own options have."""
    folder = Path(hydra_conf.__path__[0]) / "hydra" / key
    return [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.yaml"))]


def check_direction(sweeper: DictConfig, settings: Any) -> Iterator[Issue]:
    """A sweeper that looks for the best values must look in the direction of the deciding metric."""
    direction, metric = sweeper.get("direction"), (settings or {}).get("metric", SweepSettings.metric)
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
    try:
        _ = composed.hydra.sweep.dir  # where Hydra writes, long after everything else was read
    except OmegaConfBaseException as error:
        yield Issue("hydra.sweep.dir", str(error).splitlines()[0], "set output_dir")
        return
    packed = str(composed.hydra.launcher._target_).endswith(".PackedLauncher")
    folder = Path(str(composed.output_dir)).expanduser() if composed.get("output_dir") and packed else None
    if folder and (issue := check_sweep_folder(folder)):
        yield issue


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, child in children:
        yield from _leaves(child, f"{path}.{name}")
    if not isinstance(value, (dict, list)):
        yield path, value
