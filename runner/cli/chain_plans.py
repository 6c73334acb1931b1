"""``recipe=plan`` of a chain: refused, with the commands that plan its stages one by one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from runner.cli.chain_stages import complete
from runner.cli.inherit import options_of
from runner.config.objective import Objectives
from runner.config.origins import Layer, Origins
from runner.config.recipes.chain_rules import check_stages, key_of, named, stage_words
from runner.core.errors import Issue
from runner.core.hydra_quoting import override_value
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml

# What a stage has from the run that a key names, and between recipes that read rows of one kind also.
_PASSED_ON = {"adapter": ("model", "quantization", "lora", "template"), "model.path": ("model",)}
_WITH_ROWS = ("data", "trainer.per_device_train_batch_size")


def check_no_chain(
    values: dict[str, Any],
    origins: Origins,
    hydra: DictConfig,
    layers: Callable[[], Sequence[Layer]],
    objectives: Objectives,
) -> Iterator[Issue]:
    """An issue for the plan of a chain, which names the command that plans each stage that trains.

    ``hydra`` is the ``hydra`` node of the composed config, ``layers`` gives its files. Raises ``ConfigError``
    for a word that the chain would refuse.
    """
    stages = values.get("stages")
    if values.get("recipe") != "plan" or not stages or any(check_stages(stages, origins)):
        return
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    own = next((["--config-dir", _typed(folder)] for folder in folders if folder != CONFIG_DIR), [])
    plans = _plans(complete(stages, values, hydra, layers()), folders, objectives)
    commands = [shlex.join(["python", "-m", "runner", *own, "recipe=plan", *words]) for words in plans]
    message = "recipe=plan plans one training run, and a chain has several stages"
    yield Issue(origins.where("stages"), message, "; ".join(commands) or "none of these trains: recipe=chain")


def _plans(
    stages: Mapping[str, Sequence[str]], folders: Sequence[Path], objectives: Objectives
) -> Iterator[list[str]]:
    """The words that plan each stage that trains. The folder of an earlier one is not there yet: what a stage
    would have from it is said by the words of that one."""
    said: dict[str, dict[str, str]] = {}  # by stage: its words by key, and what its experiment chooses
    for name, words in stage_words(stages).items():
        given = {key_of(text): text for text in words if not named(text)}
        chosen = options_of(given.get("experiment", "").partition("=")[2], folders)
        chosen |= {key: text.partition("=")[2] for key, text in given.items()}
        recipe = chosen.setdefault("recipe", "sft")
        passed: dict[str, str] = {}
        for text in words:
            for other in named(text):
                passed |= _passed_on(key_of(text), said[other], recipe, objectives)
        passed = {key: text for key, text in passed.items() if not {key, key.partition(".")[0]} & {*chosen}}
        options = {key: f"{key}={override_value(option)}" for key, option in chosen.items()}
        said[name] = {**passed, **options, **given}
        if recipe in objectives:
            of_recipe = [text for text in _options_of(recipe) if key_of(text) not in {*chosen, *passed}]
            yield [*of_recipe, *passed.values(), *(given[key] for key in given if key != "recipe")]


def _passed_on(key: str, said: Mapping[str, str], recipe: str, objectives: Objectives) -> dict[str, str]:
    """Of what an earlier stage ``said`` that which a stage has whose ``key`` names its folder."""
    earlier = objectives.get(said["recipe"].partition("=")[2])
    same = earlier is not None and recipe in objectives and earlier.kind == objectives[recipe].kind
    rows = _WITH_ROWS if key == "adapter" and same else ()
    parts = {*_PASSED_ON.get(key, ()), *rows}
    return {name: text for name, text in said.items() if {name, name.partition(".")[0]} & parts}


def _typed(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _options_of(recipe: str) -> list[str]:
    """The options of other groups that choosing a recipe chooses."""
    defaults = read_yaml(CONFIG_DIR / "recipe" / f"{recipe}.yaml").get("defaults") or []
    return [f"{key.removeprefix('override /')}={option}" for each in defaults for key, option in each.items()]
