"""From the jobs of Hydra's sweeper to the cells of a sweep: composed, checked, named, and run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from runner.cli import run_config
from runner.cli.axes import Grid, axes_of, zip_lists
from runner.cli.compose import blame
from runner.cli.composed_once import compose_options_once
from runner.cli.plain import bound_interpolations
from runner.cli.slurm_rules import slurm_options
from runner.cli.sweeper import BASIC, why_not_repeated
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.core.folder_names import name_of
from runner.sweep import Handle
from runner.sweep.cells import Cell, expand, placed
from runner.sweep.run_sweep import Sweep


class CellFailed(RunnerError):
    """A cell of a sweep has no result; what a sweeper that asks for it gets."""


class CellReturn(JobReturn):
    """How a cell ended. Hydra's own class also prints the overrides of a failed job, a second time."""

    quiet = False

    @property
    def return_value(self) -> Any:
        """The deciding metric. Raises ``CellFailed``, but for the grid's sweeper, which would stop there."""
        if self.status == JobStatus.FAILED and not self.quiet:
            raise self._return_value
        return self._return_value if self.status == JobStatus.COMPLETED else None

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class ComposedCells:
    """The runner's cells among the jobs of one sweeper, which may ask for them in several batches.

    Hydra's sweeper composes every job to see whether it can be, and the launcher would once more. What was
    composed is kept, and cells that ``sweep.zip`` leaves out are not composed at all.
    """

    def __init__(self, handle: Handle, context: HydraContext, master: DictConfig) -> None:
        self._handle, self._master = handle, master
        self._loader: Any = context.config_loader
        compose_options_once(self._loader)
        self._load = self._loader.load_sweep_config
        self._loader.load_sweep_config = self._keep
        self._kept: dict[tuple[str, ...], DictConfig | Exception] = {}
        params = OmegaConf.select(master, "hydra.sweeper.params") or {}
        typed: list[Any] = OmegaConf.to_container(master.hydra.overrides.task)  # type: ignore[assignment]
        parser = OverridesParser.create(config_loader=self._loader)
        texts = [*(f"{key}={value}" for key, value in params.items()), *typed]
        self._axes = axes_of(parser.parse_overrides(texts))
        self._grid = Grid(self._axes, zip_lists(_plain(OmegaConf.select(master, "sweep.zip"))))
        self._grid_only = str(master.hydra.sweeper._target_).endswith(BASIC)

    def run(self, jobs: list[list[str]], first: int) -> list[JobReturn]:
        """Run the cells of a batch of jobs, each given by its overrides. Raises ``ConfigError``."""
        folder = Path(str(self._master.hydra.sweep.dir)).expanduser()
        (folder / "multirun.yaml").unlink(missing_ok=True)  # the sweeper's, which says less than sweep.json
        kept = [
            overrides for overrides in jobs if self._grid.keeps(overrides) and self._grid.first(overrides)
        ]
        try:
            sweep, every, combined = self._begin(kept, folder)
            sweep.run(every, self._values(every))
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which the sweeper has made, and is empty where nothing was run
        return [
            self._return(sweep, overrides, cells, number)
            for number, (overrides, cells) in enumerate(zip(kept, combined, strict=True), start=first)
        ]

    def _begin(self, kept: list[list[str]], folder: Path) -> tuple[Sweep, list[Cell], list[list[Cell]]]:
        """The sweep, its cells, and the same cells job by job."""
        configs = self._freeze(kept)
        sweep = self._sweep(folder, configs)
        combined = self._expand(kept, configs, folder)
        cells = {cell.key: cell for cells in combined for cell in cells} if not self._grid_only else {}
        every = list(cells.values()) or [cell for cells in combined for cell in cells]
        return sweep, every, combined

    def _keep(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Hydra's ``load_sweep_config``, which never fails here: all issues are reported together later."""
        key = tuple(sweep_overrides)
        if not self._grid.keeps(key):
            return master_config
        if key not in self._kept:
            bound_interpolations()  # each composition spends 17 of what one config may have
            try:
                self._kept[key] = self._load(master_config, list(key))
            except Exception as error:
                self._kept[key] = error
        found = self._kept[key]
        return master_config if isinstance(found, Exception) else found

    def _freeze(self, jobs: list[list[str]]) -> list[RunConfig]:
        """The config of every job. Raises ``ConfigError`` with all issues of all."""
        configs: list[RunConfig] = []
        found: dict[Issue, list[str]] = {}
        for overrides in jobs:
            name = name_of(self._swept(overrides))
            self._keep(self._master, overrides)
            composed = self._kept.pop(tuple(overrides))
            if isinstance(composed, Exception):
                found.setdefault(blame("config", composed, self._handle.command), []).append(name)
                continue
            HydraConfig.instance().set_config(composed)
            try:
                configs.append(run_config.freeze(composed, self._handle.command.objectives, multirun=True))
            except ConfigError as error:
                for issue in error.issues:
                    found.setdefault(issue, []).append(name)
        if found:
            raise ConfigError(placed(issue, names, len(jobs)) for issue, names in found.items())
        return configs

    def _sweep(self, folder: Path, configs: Sequence[RunConfig]) -> Sweep:
        """The sweep, begun with the first batch. Raises ``ConfigError`` when cells differ in how to sweep."""
        differing = [one for one in configs if one.sweep != configs[0].sweep]
        if differing:
            raise ConfigError(Issue("sweep", "the section differs between cells", "set it for all of them"))
        if any(one.resume not in (None, "auto") for one in configs):
            hint = "the same command with the same output_dir resumes a sweep"
            raise ConfigError(
                Issue(f"resume={configs[0].resume}", "resumes a single run, and this is a sweep", hint)
            )
        if self._handle.sweep is None:
            cluster = slurm_options(self._master)
            changing = why_not_repeated(self._master.hydra.sweeper, self._axes)
            self._handle.sweep = Sweep(
                folder, self._handle.typed, configs[0].sweep, cluster, not self._grid_only, changing
            )
        return self._handle.sweep

    def _expand(self, jobs: list[list[str]], configs: list[RunConfig], folder: Path) -> list[list[Cell]]:
        issues: list[Issue] = []
        combined = []
        for overrides, run in zip(jobs, configs, strict=True):
            try:
                combined.append(expand(self._swept(overrides), run, run.sweep, folder))
            except ConfigError as error:
                issues += [issue for issue in error.issues if issue not in issues]
        if issues:
            raise ConfigError(issues)
        return combined

    def _swept(self, overrides: Sequence[str]) -> list[str]:
        """Of a job's overrides those of the axes, as typed."""
        given = dict(text.lstrip("+~").split("=", 1) for text in overrides if "=" in text)
        return [f"{key}={axis.as_typed(given[key])}" for key, axis in self._axes.items() if key in given]

    def _values(self, cells: Sequence[Cell]) -> Mapping[str, list[str]]:
        """The values of each axis: as typed, and of one that is continuous those that were chosen."""
        return {
            key: list(dict.fromkeys(cell.values[key] for cell in cells)) if axis.continuous else axis.typed
            for key, axis in self._axes.items()
        }

    def _return(self, sweep: Sweep, overrides: list[str], cells: Sequence[Cell], number: int) -> JobReturn:
        value, reason = sweep.outcome(cells)
        plain = OmegaConf.create(
            {key: _shown(item) for key, item in dataclasses.asdict(cells[0].config).items()}
        )
        done = CellReturn(overrides=overrides, cfg=plain, working_dir=str(cells[0].config.output_dir))
        done.task_name = f"{cells[0].group} ({number})"
        done.quiet = self._grid_only
        done.status = JobStatus.COMPLETED if reason is None else JobStatus.FAILED
        done.return_value = value if reason is None else CellFailed(reason)
        return done


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _shown(value: Any) -> Any:
    """A value whose ``${...}`` is text."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value
