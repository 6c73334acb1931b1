"""``recipe=plan`` of a sweep: which cells would train together, and what each pack and other cell takes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from recipes import OBJECTIVES
from runner.config.recipe_rules import training_recipe
from runner.config.recipes.settings import PlanSettings
from runner.config.settings import SweepSettings
from runner.core import console
from runner.sweep.cells import Cell
from runner.sweep.devices import cuda_devices
from runner.sweep.jobs import Job
from runner.sweep.opening import say_plan, say_verdicts
from runner.sweep.packable import group
from runner.sweep.verdicts import foresee


def is_planned(cells: Sequence[Cell]) -> bool:
    """Whether nothing of a sweep is to be trained."""
    return all(cell.config.recipe == "plan" for cell in cells)


def plan_sweep(cells: Sequence[Cell], settings: SweepSettings, typed: Sequence[str]) -> None:
    """Print on one screen what the sweep would take on ``plan.gpu``, on the GPU that is here, or on this
    machine, and the command that runs it."""
    jobs = []
    for number, found in enumerate(group([_trained(cell) for cell in cells]), start=1):
        jobs.append(
            Job(f"pack-{number}" if found.alone is None else f"cell-{number}", found.cells, found.alone)
        )
    say_plan(None, cells, jobs, 0, {})
    gpu = cells[0].config.plan.gpu
    say_verdicts(foresee(jobs, settings, bool(cuda_devices()), gpu))
    words = [word for word in typed if not word.lstrip("+").startswith(("recipe=", "plan.", "output_dir="))]
    console.out.print(f"[bold]ready[/]  {shlex.join(['python', '-m', 'runner', *words])}", soft_wrap=True)


def _trained(cell: Cell) -> Cell:
    """The cell as it would be trained, which a plan refuses nothing of."""
    recipe = str(training_recipe(cell.config.trainer["_target_"], OBJECTIVES))
    return replace(cell, config=replace(cell.config, recipe=recipe, plan=PlanSettings(check=False)))
