"""The launcher ``hydra/launcher=packed``, which Hydra takes from this package only.

For the runner's own task it composes all cells and hands them to ``runner.sweep``; the tasks of other
programs are run one after the other. The runner is imported late, as Hydra reads this file at every start.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

ConfigStore.instance().store(
    group="hydra/launcher",
    name="packed",
    node={"_target_": "hydra_plugins.packed_launcher.PackedLauncher"},
    provider="runner",
)


class PackedLauncher(Launcher):
    """Runs the cells of a sweep: those that differ in adapter and optimiser only, together."""

    def __init__(self) -> None:
        self._cells: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what to run; a task with the attribute ``sweep`` is the runner's own."""
        self._context, self._task, self._config = hydra_context, task_function, config
        self._own = getattr(task_function, "sweep", None)
        if self._own is not None:
            from runner.sweep.hydra_cells import ComposedCells

            self._cells = ComposedCells(self._own, hydra_context, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; in the order of the overrides, how each ended."""
        setup_globals()
        if self._cells is not None:
            return self._cells.run([list(overrides) for overrides in job_overrides], initial_job_idx)
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        return [
            self._run_other(list(overrides), number)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]

    def _run_other(self, overrides: list[str], number: int) -> JobReturn:
        composed = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(composed):
            composed.hydra.job.id = number
            composed.hydra.job.num = number
        done = run_job(
            hydra_context=self._context,
            task_function=self._task,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        return done
