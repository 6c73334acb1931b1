"""The model that is trained: the base with a new head or adapter, or an earlier adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.settings import RunConfig
from runner.models.adapter import AdapterSaver, add_adapter, changes_base, continue_adapter
from runner.models.build import peft_config
from runner.models.model import load_model
from runner.training.setup import TrainingSetup


@dataclass(frozen=True)
class Trainable:
    """A loaded model; ``saver`` writes its adapter, None where every weight is trained.

    ``fresh_adapter`` says that the adapter is new and the base under it untouched, so that the model without
    the adapter is the model as it was before training.
    """

    model: Any
    saver: AdapterSaver | None
    fresh_adapter: bool

    def parameter_counts(self) -> dict[str, int]:
        """``trainable_parameters`` and ``total_parameters``."""
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {"trainable_parameters": trainable, "total_parameters": total_parameters(self.model)}


def total_parameters(model: Any) -> int:
    """Parameters of a model, 4-bit ones counted unpacked."""
    # bitsandbytes packs two 4-bit values into a byte
    packed = {"Params4bit"}
    return sum(
        p.numel() * (2 * p.element_size() if type(p).__name__ in packed else 1) for p in model.parameters()
    )


def load_trainable(
    config: RunConfig, objective: Objective, setup: TrainingSetup, steps: int, head: list[str] | None
) -> Trainable:
    """Load the base, with a new ``head`` of named outputs if there is one, and put the adapter on it.

    ``steps`` are the optimizer steps of the run, which AdaLoRA's schedule needs.
    """
    base = setup.base
    model: Any = load_model(base, setup.quantization, setup.precision.dtype, config.seed, head)
    adapter = peft_config(config, objective.task_type, steps)
    if config.adapter:
        model = continue_adapter(model, adapters(config)[0])
    elif adapter is not None:
        model = add_adapter(model, adapter, config.seed, base.folder)
    if setup.precision.autocast is not None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "modules_to_save" in name:
                parameter.data = parameter.data.float()  # bfloat16 would lose small updates
    saver = AdapterSaver(model) if adapter is not None or config.adapter else None
    return Trainable(model, saver, fresh_adapter=not config.adapter and not changes_base(adapter))
