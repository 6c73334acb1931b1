"""The memory of a pack, whose cells are trained on one base, by how many of them share a pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from runner.config.objective import Objective
from runner.config.settings import RunConfig
from runner.plan.built import of_model
from runner.plan.families import from_facts
from runner.plan.memory import Memory, StepMemory
from runner.plan.step import step_of
from runner.plan.trained import trained
from runner.speed.pieces import Pieces


def pack_memory(
    config: RunConfig,
    objective: Objective,
    model: Any,
    pieces: Pieces,
    precision: str,
    cells: int,
    tokens: int,
    on_cuda: bool,
) -> Callable[[int], Memory]:
    """What a step of a pack takes, as a function of how many of its ``cells`` share a pass.

    ``config`` is the first cell's, ``model`` the loaded base, ``precision`` the one that is used; ``tokens``
    are those of the longest batch of a cell.
    """
    facts = model.config.to_dict()
    architecture = from_facts(facts) or of_model(model, model.config, facts=facts)
    found = trained(architecture, config.lora)
    step = step_of(config, objective, config.recipe, architecture, found, precision, on_cuda)
    step = dataclasses.replace(step, pieces=pieces, cells=cells)
    memory = StepMemory(architecture, found, step, config.quantization or architecture.quantization)
    return lambda count: memory.at(count * tokens, count * tokens)
