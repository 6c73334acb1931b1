"""What the models of a sweep say of its cells before a process is started, as each run would find it later:
what it is refused for, and why it runs alone though its config could be one of a pack."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from recipes import OBJECTIVES
from recipes.run import quiet_libraries
from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.core.process import libraries
from runner.models.base import Base, byte_tokenizer
from runner.plan.find import find_facts
from runner.sweep.cells import Cell, placed

# What decides neither which weights have an adapter nor of which class PEFT's layers are.
_FREE = ("r", "lora_alpha", "use_rslora")
_OF_TRAINER = ("packing", "padding_free", "packing_strategy", "disable_dropout")


def check_models(cells: Sequence[Cell]) -> dict[str, str]:
    """Why cells run alone, by name, tried on their models without weights.

    A cell whose model is not to be had is left to its run, which says so. Raises ``ConfigError`` for the
    cells whose run would be refused, all together.
    """
    quiet_libraries()
    reasons: dict[str, str] = {}
    issues: dict[Issue, list[str]] = {}
    seen: dict[str, str | ConfigError | None] = {}
    for cell in cells:
        if (objective := OBJECTIVES.get(cell.config.recipe)) is None:
            continue
        key = _key(cell.config)
        if key not in seen:
            try:
                seen[key] = _reason_alone(cell.config, objective)
            except ConfigError as error:
                seen[key] = error
        found = seen[key]
        if isinstance(found, ConfigError):
            for issue in found.issues:
                issues.setdefault(issue, []).append(cell.name)
        elif found:
            reasons[cell.name] = found
    if issues:
        raise ConfigError(placed(issue, names, len(cells)) for issue, names in issues.items())
    return reasons


def _key(config: RunConfig) -> str:
    """What the checks of a model depend on, as text."""
    lora = {key: value for key, value in config.lora.items() if key not in _FREE}
    trainer = {key: config.trainer.get(key) for key in _OF_TRAINER}
    model = dataclasses.asdict(config.model)
    return json.dumps([config.recipe, config.adapter, model, lora, config.quantization, trainer], default=str)


def _reason_alone(config: RunConfig, objective: Objective) -> str | None:
    with libraries.importing("peft"):
        base = _shape(config)
        if base is None:
            return None
        # only now, as these import torch
        from runner.models.empty_model import module_names
        from runner.packed.fit import cannot_pack
        from runner.speed.row_separation import check_packing
        from runner.training.argument_checks import try_lora

    check_packing(config, base)
    classes = ["score"] if objective.task_type == "SEQ_CLS" else None
    if config.adapter:
        classes = adapters(config)[0].base.get("classes")
    tried = try_lora(config, objective, base, module_names(base), classes)
    if objective.packed is None or not tried:
        return None
    drops = not config.trainer.get("disable_dropout", objective.reference)  # TRL's default of preferences
    return cannot_pack(tried[0][0], drops, continued=bool(config.adapter))


def _shape(config: RunConfig) -> Base | None:
    """The model of a cell without files; None where they or its own code are needed to know it."""
    from transformers import AutoConfig

    if config.model.trust_remote_code:
        return None
    try:
        facts = {key: value for key, value in find_facts(config.model).items() if not key.startswith("_")}
        shape = AutoConfig.for_model(str(facts.pop("model_type")), **facts)
    except (RunnerError, ValueError, TypeError, KeyError):
        return None
    return Base(config.model, shape, byte_tokenizer(), None)
