"""``recipe=plan`` of a sweep: which cells would train together, and what each pack and other cell takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.markup import escape

from recipes import OBJECTIVES
from runner.config.recipe_rules import training_recipe
from runner.config.recipes.settings import PlanSettings
from runner.config.settings import SweepSettings
from runner.core import console
from runner.plan.fit import training_command
from runner.sweep.cells import Cell
from runner.sweep.check_models import check_models
from runner.sweep.devices import cuda_devices
from runner.sweep.jobs import Job
from runner.sweep.opening import say_plan, say_refused, say_verdicts
from runner.sweep.packable import group
from runner.sweep.verdicts import foresee


def is_planned(cells: Sequence[Cell]) -> bool:
    """Whether nothing of a sweep is to be trained."""
    return all(cell.config.recipe == "plan" for cell in cells)


def plan_sweep(cells: Sequence[Cell], settings: SweepSettings, typed: Sequence[str]) -> None:
    """Print on one screen what the sweep would take on ``plan.gpu``, which may be an axis, on the GPU that is
    here, or on this machine, and the command that runs it where all of it can be."""
    jobs: dict[str | None, list[Job]] = {}
    of_models = check_models([_trained(cell) for cell in cells])
    groups = [
        (gpu, found)
        for gpu in dict.fromkeys(cell.config.plan.gpu for cell in cells)
        for found in group([_trained(cell) for cell in cells if cell.config.plan.gpu == gpu], of_models)
    ]
    for number, (gpu, found) in enumerate(groups, start=1):
        name = f"pack-{number}" if found.alone is None else f"cell-{number}"
        jobs.setdefault(gpu, []).append(Job(name, found.cells, found.alone))
    able: list[str] = []
    say_plan(None, cells, [job for each in jobs.values() for job in each], 0, {})
    for gpu, each in jobs.items():
        found = foresee(each, settings, bool(cuda_devices()), gpu)
        say_verdicts(found)
        cannot = [verdict for verdict in found if verdict.refusal]
        say_refused(cannot)
        able += [str(gpu)] * (not cannot)
    if not able:
        console.out.print("no command: not all cells can be run")
        return
    recipes = dict.fromkeys(_trained(cell).config.recipe for cell in cells)
    command = escape(training_command(typed, ",".join(recipes), {}))
    where = f"for {escape(', '.join(able))}  " if len(able) < len(jobs) else ""
    console.out.print(f"[bold]ready[/]  {where}{command}", soft_wrap=True)


def _trained(cell: Cell) -> Cell:
    """The cell as it would be trained, which a plan refuses nothing of."""
    recipe = str(training_recipe(cell.config.trainer["_target_"], OBJECTIVES))
    return replace(cell, config=replace(cell.config, recipe=recipe, plan=PlanSettings(check=False)))
