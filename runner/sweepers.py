"""What a config may tell Hydra: the sweeper that chooses the values, and no classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.errors import Problem
from runner.settings import SweepSettings


def check_classes(hydra: DictConfig) -> Iterator[Problem]:
    """Classes that Hydra itself would import and call: a config from someone else must not run code."""
    if hydra.get("callbacks"):
        yield Problem("hydra.callbacks", "no class may be named here", "leave it out")
    for path, value in _leaves(OmegaConf.to_container(hydra.sweeper, resolve=False), "hydra.sweeper"):
        name = path.rpartition(".")[2]
        sampler = name == "_target_" and str(value).startswith("optuna.samplers.")
        if name == "custom_search_space" and value:
            yield Problem(path, "no function may be named here", "write the axes: lora.r=8,16")
        elif name == "_target_" and path != "hydra.sweeper._target_" and not sampler:
            yield Problem(path, f"{value!r} is not allowed", "a sampler: optuna.samplers.TPESampler")


def check_direction(sweeper: DictConfig, settings: Any) -> Iterator[Problem]:
    """A sweeper that looks for the best values must look in the direction of the deciding metric."""
    direction, metric = sweeper.get("direction"), (settings or {}).get("metric", SweepSettings.metric)
    if direction is None or not isinstance(metric, str):
        return
    from runner.sweep.leaderboard import higher_is_better

    wanted = "maximize" if higher_is_better(metric) else "minimize"
    given = getattr(direction, "name", str(direction))
    if given != wanted:
        message = f"the best {metric} is the {'largest' if wanted == 'maximize' else 'smallest'}"
        hint = f"hydra.sweeper.direction={wanted}"
        yield Problem(f"hydra.sweeper.direction={given}", message, hint)


def check_sweep_folder(composed: DictConfig) -> Iterator[Problem]:
    """A folder that holds something else is refused before Hydra's sweeper writes a file of its own there."""
    if composed.get("output_dir") and str(composed.hydra.launcher._target_).endswith(".PackedLauncher"):
        from runner.sweep.ledger import check_folder

        if problem := check_folder(Path(str(composed.output_dir)).expanduser()):
            yield problem


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, child in children:
        yield from _leaves(child, f"{path}.{name}")
    if not isinstance(value, (dict, list)):
        yield path, value
