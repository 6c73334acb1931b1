"""What must hold between the recipe and the other keys: its trainer, its task, its losses, keys of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

from runner.config.objective import Objective, Objectives, task_type
from runner.config.origins import Origins
from runner.config.recipes.benchmark_rules import check_benchmark
from runner.config.recipes.chain_rules import check_stages
from runner.config.recipes.plan_rules import check_plan
from runner.config.settings import OWN_SECTIONS
from runner.core.errors import Issue, nearest
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml

Values = dict[str, Any]

# Keys and sections that only these recipes read.
_TRAINING = "every recipe that trains"
BELONGS = {
    "resume": (_TRAINING, "chain"),
    "on_oom": (_TRAINING, "plan"),
    "speed": (_TRAINING, "benchmark", "plan"),
    "parallel": (_TRAINING, "plan"),
    "export": ("merge",),
    "gguf": ("merge",),
    "merge": ("merge",),
    "push_to": (_TRAINING, "merge", "plan"),
    "evaluate": ("evaluate",),
    "chat": ("chat",),
    "prompt": ("chat",),
    "prompts": ("chat",),
    "stages": ("chain",),
    "against": ("benchmark",),
    "benchmark": ("benchmark",),
    "plan": ("plan",),
}
# Of a section that training recipes do not read otherwise, the key that they do.
_OF_TRAINING = ("plan.check",)
# Recipes that look at the machine, whatever stands in a config.
MACHINE_ALONE = ("doctor",)
# Recipes that look at a training recipe, the one that trains with the config's trainer.
_OF_A_TRAINER = {"benchmark": check_benchmark, "plan": check_plan}
_SEVERAL_ADAPTERS = ("merge", "evaluate", "chat")


@cache
def recipe_names() -> list[str]:
    """Names of the recipes: each has an option that chooses it."""
    return sorted(file.stem for file in (CONFIG_DIR / "recipe").glob("*.yaml"))


def check_recipe(values: Values, origins: Origins, objectives: Objectives) -> Iterator[Issue]:
    """Problems of the recipe's name and of what goes with it."""
    recipe = values.get("recipe")
    if recipe not in recipe_names():
        names = recipe_names()
        yield Issue(origins.where("recipe"), f"unknown recipe {recipe!r}", nearest(recipe, names, len(names)))
        return
    if recipe == "plan" and values.get("stages"):  # which cli.chain_plans refuses
        yield from check_stages(values["stages"], origins)
        return
    if recipe in MACHINE_ALONE:
        yield from _check_keys_of_others(str(recipe), values, origins, objectives)
        return
    yield from _check_trainer(str(recipe), values, origins)
    trained = str(recipe)
    if check := _OF_A_TRAINER.get(str(recipe)):
        trained = training_recipe((values.get("trainer") or {}).get("_target_"), objectives) or trained
        yield from check(values, origins, trained if trained in objectives else None)
    yield from _check_task(trained, values, origins, objectives)
    yield from _check_keys_of_others(str(recipe), values, origins, objectives)
    if objective := objectives.get(trained):
        yield from _check_losses(objective, values.get("trainer") or {}, origins)
        yield from _check_adapter(trained, objective, values.get("lora") or {}, origins)
    if recipe == "chain":
        yield from check_stages(values.get("stages"), origins)
    if recipe == "merge" and not values.get("adapter"):
        yield Issue(origins.where("adapter"), "recipe=merge needs an adapter", "add adapter=RUN_FOLDER")


def _check_trainer(recipe: str, values: Values, origins: Origins) -> Iterator[Issue]:
    trainer = values.get("trainer") or {}
    target, expected = trainer.get("_target_"), trainer_class(recipe)
    if target is None:
        if not trainer:  # with keys but no class, its section says so
            yield Issue(origins.where("trainer"), "trainer names no class", "choose one: trainer=...")
    elif expected and target != expected:
        hint = f"trainer={recipe}, or the recipe of {target}"
        message = f"recipe={recipe} trains with {expected}, not {target}"
        yield Issue(origins.where("trainer._target_"), message, hint)


@cache
def trainer_class(recipe: str) -> str | None:
    """The class of ``conf/trainer/RECIPE.yaml``; None for a recipe without options of its own."""
    file = CONFIG_DIR / "trainer" / f"{recipe}.yaml"
    return read_yaml(file).get("_target_") if file.is_file() else None


def training_recipe(target: Any, objectives: Objectives) -> str | None:
    """The recipe that trains with a class of ``trainer._target_``; None if there is none."""
    return next((name for name in objectives if trainer_class(name) == target), None)


def _check_task(recipe: str, values: Values, origins: Origins, objectives: Objectives) -> Iterator[Issue]:
    given = (values.get("lora") or {}).get("task_type")
    expected = task_type(objectives.get(recipe))
    if given not in (None, expected):
        others = [name for name, objective in objectives.items() if objective.task_type == given]
        message = f"lora.task_type: {given!r} is not allowed with recipe={recipe}, which trains {expected}"
        hint = f"recipe={' or '.join(others)}" if others else f"leave it out, or lora.task_type={expected}"
        yield Issue(origins.where("lora.task_type"), message, hint)
    if isinstance(values.get("adapter"), list) and recipe not in _SEVERAL_ADAPTERS:
        message = f"adapter: recipe={recipe} takes one adapter, got {len(values['adapter'])}"
        yield Issue(origins.where("adapter"), message, f"several: {', '.join(_SEVERAL_ADAPTERS)}")


def _check_keys_of_others(
    recipe: str, values: Values, origins: Origins, objectives: Objectives
) -> Iterator[Issue]:
    """A key that the recipe would never look at must not seem to have an effect."""
    for key, owners in BELONGS.items():
        value = values.get(key)
        if recipe in owners or not value or (_TRAINING in owners and recipe in objectives):
            continue
        named = [name for owner in owners for name in (objectives if owner == _TRAINING else (owner,))]
        names = [key]
        if key in OWN_SECTIONS and isinstance(value, dict):
            defaults = {item.name: item.default for item in dataclasses.fields(OWN_SECTIONS[key])}
            names = [f"{key}.{name}" for name, given in value.items() if given != defaults.get(name)]
        for name in names:
            if (recipe in MACHINE_ALONE and not origins.typed(name)) or (
                recipe in (*objectives, "benchmark") and name in _OF_TRAINING
            ):
                continue
            yield Issue(
                origins.where(name),
                f"{name} has no effect with recipe={recipe}",
                f"it belongs to recipe={', '.join(named)}",
            )


def _check_losses(objective: Objective, trainer: Values, origins: Origins) -> Iterator[Issue]:
    """The losses of the recipe, and what else it says of its trainer's fields."""
    given = trainer.get("loss_type")
    for name in given if isinstance(given, list) else [given] if given else []:
        if objective.losses and name not in objective.losses:
            where = origins.where("trainer.loss_type")
            message = f"trainer.loss_type: {name!r} is not allowed"
            yield Issue(where, message, nearest(name, objective.losses, 20))
    for key, message, hint in objective.check(trainer) if objective.check else ():
        yield Issue(origins.where(key), message, hint)


def _check_adapter(recipe: str, objective: Objective, lora: Values, origins: Origins) -> Iterator[Issue]:
    """An issue for an adapter of a kind that the recipe's trainer fails with."""
    name = str(lora.get("_target_")).rpartition(".")[2]
    if name in objective.adapters_refused:
        message = f"lora._target_: TRL's trainer of recipe={recipe} cannot train the tokens of a {name}"
        yield Issue(origins.where("lora._target_"), message, "lora=prefix or r16")
