"""The model that is trained: the base with a new head or adapter, or an earlier adapter on it; and before it
is loaded, what that is expected to take."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import psutil

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.recipes.cards import Card, find_card
from runner.config.settings import RunConfig
from runner.data.splits import Data
from runner.models.adapter import AdapterSaver, add_adapter, changes_base, continue_adapter
from runner.models.build import peft_config
from runner.models.model import device, load_model
from runner.plan.expected import Expected, Rows, expected
from runner.runs.run_folder import RunFolder
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


def foresee(
    config: RunConfig,
    objective: Objective,
    setup: TrainingSetup,
    data: Data,
    head: list[str] | None,
    steps: int,
    folder: RunFolder,
) -> Expected | None:
    """Record what a run will take. Raises ``ConfigError`` where it cannot fit its GPU, unless
    ``plan.check=false``.

    None where the model's config does not tell. Nothing is refused but on CUDA.
    """
    card = cuda_card()
    found = expected(
        config,
        objective,
        setup.base.config.to_dict(),
        (setup.precision.name, setup.pieces),
        _rows(setup, data, objective),
        steps,
        len(head) if head else None,
        card,
        psutil.Process().memory_info().rss,
    )
    if found is None:
        return None
    folder.record["predicted"] = found.record()
    if config.plan.check and card is not None:
        import torch

        free, _ = torch.cuda.mem_get_info(device())
        found.check_fits(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    return found


def compare(folder: RunFolder) -> None:
    """Put the peak that was measured beside the predicted one."""
    if "predicted" in folder.record:
        folder.record["predicted"]["measured_peak_bytes"] = folder.metrics["peak_memory_bytes"]


def _rows(setup: TrainingSetup, data: Data, objective: Objective) -> Rows:
    train = data.train
    labelled = train.trained_tokens / max(1, train.tokens) if objective.token_loss else 1.0
    if setup.packs and setup.max_length:
        return Rows(
            max(1, train.tokens // setup.max_length), setup.max_length, float(setup.max_length), labelled
        )
    sequences = 2 if objective.kind == "preference" else 1
    mean = train.tokens / max(1, len(train.rows) * sequences)
    return Rows(len(train.rows), train.longest, min(mean, train.longest), labelled)


def cuda_card() -> Card | None:
    """The CUDA device of this process, with its real memory."""
    if device().type != "cuda":
        return None
    import torch

    facts = torch.cuda.get_device_properties(device())
    known = find_card(facts.name) or Card(facts.name, 0)
    return dataclasses.replace(known, name=facts.name, memory=facts.total_memory)
