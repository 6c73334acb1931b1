"""Which cells of a sweep can train together, and of the others why they run alone."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recipes import OBJECTIVES
from runner.config.settings import RunConfig
from runner.sweep.cells import Cell

# What may differ inside a pack. The seed draws adapter and order of rows, and of random weights the base.
AXES = {
    "lora": ("r", "lora_alpha", "lora_dropout", "use_rslora"),
    "trainer": (
        "learning_rate",
        "weight_decay",
        "warmup_steps",
        "warmup_ratio",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "max_grad_norm",
    ),
}
# What must be the same for all cells of a pack, and has the same effect there as in a solo run. A cell with
# any other key that is set runs alone: better slow than silently different.
_SHARED = {
    "lora": (
        "_target_",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "require_all",
        "task_type",
    ),
    "trainer": (
        "_target_",
        "precision",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "max_length",
        "logging_steps",
        "logging_strategy",
        "logging_first_step",
        "logging_nan_inf_filter",
        "eval_strategy",
        "eval_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "data_seed",
        "seed",
        "disable_dropout",
        "precompute_ref_log_probs",  # a pack always does
        "precompute_ref_batch_size",
    ),
}
# Values of other keys with which an adapter trains in a pack as it does alone.
_ORDINARY = {
    "init_lora_weights": (True, "gaussian"),
    "bias": ("none",),
    "report_to": ("none", ["none"], [], "null"),
    "loss_type": ("nll",),
    "optim": ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"),  # element by element
}
_SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
)


@dataclass(frozen=True)
class Group:
    """Cells that train together, or one cell with the reason why it runs ``alone``."""

    cells: list[Cell]
    alone: str | None = None


def group(cells: list[Cell], of_models: Mapping[str, str]) -> list[Group]:
    """Put cells together that differ only in what may differ inside a pack; the order is kept.

    ``of_models`` are the reasons that models give to run a cell alone (``check_models``), by its name.
    """
    shared: dict[str, list[Cell]] = {}
    groups: list[Group] = []
    for cell in cells:
        reason = next(reasons_alone(cell.config), None) or of_models.get(cell.name)
        if reason:
            groups.append(Group([cell], reason))
            continue
        key = _shared_part(cell.config)
        if key not in shared:
            shared[key] = []
            groups.append(Group(shared[key]))
        shared[key].append(cell)
    lonely = "no other cell has the same base, rows and steps"
    return [
        Group(found.cells, lonely) if len(found.cells) == 1 and not found.alone else found for found in groups
    ]


def reasons_alone(config: RunConfig) -> Iterator[str]:
    """Why a run cannot be one of a pack, as far as its config says."""
    objective = OBJECTIVES.get(config.recipe)
    if objective is None or not objective.packed:
        yield f"recipe={config.recipe} is not packed"
    if not config.lora:
        yield "full fine-tuning is not packed"
    elif config.lora.get("_target_") != "peft.LoraConfig":
        yield f"{config.lora.get('_target_')} is not packed"
    for key in ("resume", "push_to"):
        if getattr(config, key):
            yield f"{key}={getattr(config, key)}"
    if config.speed.chunked_loss is False:
        yield "speed.chunked_loss=false: a pack has no loss of the library's"
    if config.model.device_map:
        yield f"model.device_map={config.model.device_map}"
    dropout = config.adapter and config.trainer.get("disable_dropout") is False
    if objective and objective.reference and dropout:
        yield "trainer.disable_dropout=false: the reference, which is computed once, would have dropout too"
    if (config.trainer.get("gradient_checkpointing_kwargs") or {}).get("selective"):
        yield "trainer.gradient_checkpointing_kwargs: TRL's selective checkpointing is not packed"
    if config.trainer.get("precision") == "fp16":
        yield "trainer.precision=fp16 has one loss scaler for the whole batch"
    if config.trainer.get("lr_scheduler_type", "linear") not in _SCHEDULES:
        schedule = config.trainer["lr_scheduler_type"]
        yield f"trainer.lr_scheduler_type={schedule} does not depend on the step alone"
    for section, axes in _axes(config).items():
        for key, value in getattr(config, section).items():
            if key in (*axes, *AXES[section], *_SHARED[section]) or value in (
                None,
                False,
                0,
                0.0,
                "no",
                [],
                {},
            ):
                continue
            if value not in _ORDINARY.get(key, ()):
                yield f"{section}.{key}={value} is not packed"


def _axes(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """What may differ between cells of this recipe; an adapter that is continued keeps its shape."""
    objective = OBJECTIVES.get(config.recipe)
    own = objective.pack_axes if objective else ()
    return {"lora": () if config.adapter else AXES["lora"], "trainer": (*AXES["trainer"], *own)}


def _shared_part(config: RunConfig) -> str:
    """All that the cells of a pack have in common, as text."""
    values: dict[str, Any] = copy.deepcopy(dataclasses.asdict(config))
    for section, keys in _axes(config).items():
        for key in keys:
            values[section].pop(key, None)
    if config.model.weights != "random":
        values.pop("seed")
    for key in ("output_dir", "sweep"):
        values.pop(key)
    return json.dumps(values, sort_keys=True, default=str)
