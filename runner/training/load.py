"""The model that is trained: the base with a new head or adapter, or an earlier adapter on it; and before it
is loaded, what that is expected to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import psutil

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.recipes.cards import Card, find_card
from runner.config.settings import RunConfig
from runner.core import environment
from runner.data.splits import Data
from runner.models.adapter import AdapterSaver, add_adapter, changes_base, continue_adapter
from runner.models.base import Base
from runner.models.build import peft_config
from runner.models.empty_model import empty_model
from runner.models.model import device, load_model
from runner.parallel.group import Group
from runner.plan.architecture import Architecture
from runner.plan.built import of_model
from runner.plan.expected import Expected, Place, Rows, expected
from runner.plan.families import from_facts
from runner.plan.rows import summary
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

    def spread(self, group: Group) -> None:
        """Have the first process's weights in all, as far as they are drawn or computed where the model is
        loaded: the singular vectors of PiSSA, for one, have other signs in another process."""
        changed = self.saver is not None and self.saver.changes_base
        group.spread([each.data for each in self.model.parameters() if each.requires_grad or changed])

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
    config: RunConfig,
    objective: Objective,
    setup: TrainingSetup,
    steps: int,
    head: list[str] | None,
    on_host: bool = False,
) -> Trainable:
    """Load the base, with a new ``head`` of named outputs if there is one, and put the adapter on it.

    ``steps`` are the optimizer steps of the run, which AdaLoRA's schedule needs. ``on_host`` leaves all of it
    in the memory of the host.
    """
    base = setup.base
    model: Any = load_model(base, setup.quantization, setup.precision.dtype, config.seed, head, on_host)
    _count_experts(model.config.get_text_config())
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


def _count_experts(config: Any) -> None:
    """Let TRL 1.16, which balances the experts of any model that has a coefficient for it, find their number:
    Granite 4's config has it as ``num_local_experts``, which is 0 in its dense models."""
    if not hasattr(config, "router_aux_loss_coef"):
        return
    if not hasattr(config, "num_experts"):
        kind = type(config)
        kind.attribute_map = {**kind.attribute_map, "num_experts": "num_local_experts"}
    if not config.num_experts:
        config.router_aux_loss_coef = 0.0


def foresee(
    config: RunConfig,
    objective: Objective,
    setup: TrainingSetup,
    rows: Rows,
    folders: Sequence[RunFolder],
    steps: int,
    head: list[str] | None = None,
    most_per_pass: int | None = None,
) -> Expected | None:
    """Record in the ``folders`` of a run, or of the cells of a pack, what it will take. Raises
    ``ConfigError`` where it cannot fit its GPU, unless ``plan.check=false``.

    ``config`` is that of the run, or ``runner.plan.packs.widest`` of the cells', of which ``most_per_pass``
    may share a pass. None where the config does not tell. Nothing is refused but on CUDA.
    """
    architecture = _architecture(setup.base)
    if architecture is None:
        return None
    classes, cells = len(head) if head else None, (len(folders), most_per_pass)
    step = (setup.precision.name, setup.pieces)
    found = expected(config, objective, architecture, rows, place(), step, steps, classes, cells)
    if found is None:
        return None
    for folder in folders:
        folder.record["predicted"] = found.record()
    found.check_fits(folders[0].record["overrides"] if len(folders) == 1 else None)
    return found


def _architecture(base: Base) -> Architecture | None:
    """What the config says of the model, or its modules without weights; None for remote code."""
    found = from_facts(base.config.to_dict())
    if found is not None or base.settings.trust_remote_code:
        return found
    try:
        quantization = getattr(base.config, "quantization_config", None)
        facts = base.config.to_dict()
        return of_model(empty_model(base), base.config, dict(quantization or {}), facts)
    except (AttributeError, TypeError):  # a config without heads, or with several for its layers
        return None


def place() -> Place:
    """The device of this process, what of it is free, and what this process has."""
    return Place(
        cuda_card(), free_bytes(), psutil.Process().memory_info().rss, environment.native_precision()
    )


def free_bytes() -> int:
    """Memory that the device of this process has left."""
    if cuda_card() is None:
        return environment.available_memory()
    import torch

    free, _ = torch.cuda.mem_get_info(device())
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def compare(folder: RunFolder) -> None:
    """Put what was measured beside what was predicted: the peak, and the seconds of the median step."""
    predicted = folder.record.get("predicted")
    if predicted is None:
        return
    predicted["measured_peak_bytes"] = folder.metrics["peak_memory_bytes"]
    if (allocated := environment.peak_allocated()) is not None:
        predicted["measured_allocated_bytes"] = allocated
    predicted["measured_step_seconds"] = steady_step(folder.logged())


def steady_step(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of the median optimizer step by the lines of a log; None where there are too few.

    The first steps, which compile and record, are left out where there are many.
    """
    ends = [(line["step"], line["seconds"]) for line in lines if line.get("loss") is not None]
    steps = [
        (after - before) / (last - first)
        for (first, before), (last, after) in pairwise(ends)
        if last > first and after > before  # a run that was resumed counts its seconds anew
    ]
    return round(median(steps[len(steps) // 4 :]), 6) if steps else None


def rows_of(setup: TrainingSetup, data: Data, objective: Objective, in_pack: bool = False) -> Rows:
    """The rows that a run, or a cell of a pack, is trained on, as the plan counts them."""
    return summary(data, objective, setup.max_length if setup.packs else None, in_pack)


def cuda_card() -> Card | None:
    """The CUDA device of this process, with its real memory."""
    if device().type != "cuda":
        return None
    import torch

    facts = torch.cuda.get_device_properties(device())
    known = find_card(facts.name) or Card(facts.name, 0)
    return dataclasses.replace(known, name=facts.name, memory=facts.total_memory)
