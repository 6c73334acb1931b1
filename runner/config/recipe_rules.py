"""What must hold between the recipe and the other keys: its trainer, its task, its losses, keys of others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from runner.config.origins import Origins
from runner.config.settings import OWN_SECTIONS
from runner.core.errors import Issue, nearest
from runner.core.paths import CONFIG_DIR
from runner.training.objectives import OBJECTIVES

Values = dict[str, Any]

# Keys and sections that say nothing to other recipes than these.
_TRAINING = tuple(OBJECTIVES)
BELONGS = {
    "resume": (*_TRAINING, "chain"),
    "on_oom": _TRAINING,
    "export": ("merge",),
    "gguf": ("merge",),
    "merge": ("merge",),
    "push_to": (*_TRAINING, "merge"),
    "evaluate": ("evaluate",),
    "chat": ("chat",),
    "prompt": ("chat",),
    "prompts": ("chat",),
    "stages": ("chain",),
}
_SEVERAL_ADAPTERS = ("merge", "evaluate", "chat")

# Losses that TRL 1.16 knows, of which it checks the name in the first step only.
LOSSES = {
    "dpo": (
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ),
    "kto": ("kto", "apo_zero_unpaired"),
}
# Those built on the difference of two rewards, in which another divergence can take the place of the KL.
_DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


def recipes() -> list[str]:
    """Names of the recipes: each has an option that chooses it."""
    return sorted(file.stem for file in (CONFIG_DIR / "recipe").glob("*.yaml"))


def check_recipe(values: Values, origins: Origins) -> Iterator[Issue]:
    """Problems of the recipe's name and of what goes with it."""
    recipe = values.get("recipe")
    if recipe not in recipes():
        yield Issue(origins.where("recipe"), f"unknown recipe {recipe!r}", nearest(recipe, recipes()))
        return
    yield from _check_trainer(str(recipe), values, origins)
    yield from _check_task(str(recipe), values, origins)
    yield from _check_keys_of_others(str(recipe), values, origins)
    yield from _check_losses(str(recipe), values.get("trainer") or {}, origins)
    if recipe == "chain":
        yield from _check_stages(values.get("stages"), origins)
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
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("_target_") if file.is_file() else None


def _check_task(recipe: str, values: Values, origins: Origins) -> Iterator[Issue]:
    given = (values.get("lora") or {}).get("task_type")
    expected = OBJECTIVES[recipe].task_type if recipe in OBJECTIVES else "CAUSAL_LM"
    if given not in (None, expected):
        others = [name for name, objective in OBJECTIVES.items() if objective.task_type == given]
        message = f"lora.task_type: {given!r} is not allowed with recipe={recipe}, which trains {expected}"
        hint = f"recipe={' or '.join(others)}" if others else f"leave it out, or lora.task_type={expected}"
        yield Issue(origins.where("lora.task_type"), message, hint)
    if isinstance(values.get("adapter"), list) and recipe not in _SEVERAL_ADAPTERS:
        message = f"adapter: recipe={recipe} takes one adapter, got {len(values['adapter'])}"
        yield Issue(origins.where("adapter"), message, f"several: {', '.join(_SEVERAL_ADAPTERS)}")


def _check_keys_of_others(recipe: str, values: Values, origins: Origins) -> Iterator[Issue]:
    """A key that the recipe would never look at must not seem to have an effect."""
    for key, owners in BELONGS.items():
        value = values.get(key)
        if recipe in owners or not value:
            continue
        names = [key]
        if key in OWN_SECTIONS and isinstance(value, dict):
            defaults = {item.name: item.default for item in dataclasses.fields(OWN_SECTIONS[key])}
            names = [f"{key}.{name}" for name, given in value.items() if given != defaults.get(name)]
        for name in names:
            yield Issue(
                origins.where(name),
                f"{name} has no effect with recipe={recipe}",
                f"it belongs to recipe={', '.join(owners)}",
            )


def _check_losses(recipe: str, trainer: Values, origins: Origins) -> Iterator[Issue]:
    given = trainer.get("loss_type")
    losses = given if isinstance(given, list) else [given] if given else []
    known = LOSSES.get(recipe, losses)
    for name in (name for name in losses if name not in known):
        where = origins.where("trainer.loss_type")
        yield Issue(where, f"trainer.loss_type: {name!r} is not allowed", nearest(name, known, 20))
    if recipe == "kto" and "kto" in losses and trainer.get("per_device_train_batch_size", 8) < 2:
        key = "trainer.per_device_train_batch_size"
        message = f"{key}=1: the KL term of KTO is estimated from other rows of the batch"
        yield Issue(origins.where(key), message, "at least 2; trainer.loss_type=apo_zero_unpaired has none")
    if "exo_pair" in losses and not trainer.get("label_smoothing"):
        message = "trainer.loss_type=exo_pair needs trainer.label_smoothing above 0"
        yield Issue(origins.where("trainer.loss_type"), message, "its paper recommends 1e-3")
    divergence = trainer.get("f_divergence_type", "reverse_kl")
    wrong = [name for name in losses if name not in _DIVERGENT]
    if recipe == "dpo" and divergence != "reverse_kl" and wrong:
        message = f"trainer.f_divergence_type={divergence} is not defined for the loss {wrong[0]}"
        yield Issue(origins.where("trainer.f_divergence_type"), message, f"for: {', '.join(_DIVERGENT)}")


def _check_stages(stages: Any, origins: Origins) -> Iterator[Issue]:
    where = origins.where("stages")
    if not isinstance(stages, dict) or not stages:
        hint = "stages={sft: [recipe=sft], merge: [recipe=merge, 'adapter={sft}']}"
        yield Issue(where, "recipe=chain needs stages", hint)
        return
    earlier: list[str] = []
    for name, words in stages.items():
        if not re.fullmatch(r"[\w-][\w.-]*", str(name)):
            yield Issue(where, f"stages: {name!r} cannot be a folder's name", "letters, digits, . _ and -")
        if not isinstance(words, list) or not all(isinstance(text, str) and "=" in text for text in words):
            yield Issue(where, f"stages.{name} must be a list of overrides, got {words!r}", "[recipe=sft]")
            continue
        for text in words:
            for other in re.findall(r"\{([\w.-]+)\}", text):
                if other not in earlier:
                    message = f"stages.{name}: {text} names a stage that does not come before it"
                    yield Issue(where, message, nearest(other, earlier) or "the first stage can name none")
        earlier.append(str(name))
