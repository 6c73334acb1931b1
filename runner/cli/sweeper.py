"""What Hydra's sweeper is handed, so that the same command has the same cells again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from runner.cli.axes import Axis
from runner.cli.command import Command

_SEED = "hydra.sweeper.sampler.seed"
_DEFAULT_SEED = 0
BASIC = ".BasicSweeper"


def repeatable(command: Command, typed: Sequence[Override], composed: DictConfig | None) -> Command:
    """The command of a sweep as a sweeper that chooses values gets it: each key that is an axis once, by what
    was typed last, and for a sampler that draws values without a seed one that is always the same.

    The sweeper of optuna would take the first value where a later one makes an axis. A study that is kept
    in a storage goes on with other values, and needs none of ours.
    """
    if command.sweeper == "basic":
        return command
    swept = {item.key_or_group for item in typed if item.is_sweep_override()}
    last = {item.key_or_group: number for number, item in enumerate(typed)}
    words = [
        str(item.input_line)
        for number, item in enumerate(typed)
        if item.key_or_group not in swept or last[item.key_or_group] == number
    ]
    sweeper: Any = OmegaConf.select(composed, "hydra.sweeper") if composed is not None else {}
    if _SEED not in last and not sweeper.get("storage") and _unseeded(sweeper):
        words.append(f"{_SEED}={_DEFAULT_SEED}")
    flags = command.argv[: len(command.argv) - len(command.overrides)]
    return dataclasses.replace(command, overrides=words, argv=[*flags, *words])


def why_not_repeated(sweeper: Any, axes: Mapping[str, Axis]) -> str:
    """Why the same command may have other cells when it is started again; empty where it has not."""
    if str(sweeper.get("_target_")).endswith(BASIC):
        return ""
    if "sampler" not in sweeper:
        return "the sweeper may choose other cells than before"
    if sweeper.get("storage"):
        return "the study in hydra.sweeper.storage goes on, its n_trials asked for anew"
    if _unseeded(sweeper):
        return f"{_SEED} is null, so that it chooses other cells than before"
    grid = math.prod(len(axis.values) for axis in axes.values())
    if "seed" not in sweeper.sampler and sweeper.n_trials < grid:
        return f"the sampler has no seed, so that it chooses another {sweeper.n_trials} of {grid} cells"
    return ""


def _unseeded(sweeper: Mapping[str, Any]) -> bool:
    sampler = sweeper.get("sampler")
    return isinstance(sampler, DictConfig) and "seed" in sampler and sampler.seed is None
