"""What training needs before its weights are loaded, and every config error that can be found by then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.adapters import check_base, check_shape
from runner.config.objective import Objective
from runner.config.settings import RunConfig
from runner.data.chat_template_check import apply_template
from runner.data.max_length import row_limit
from runner.data.splits import Data
from runner.data.stop_tokens import check_turns
from runner.data.template import Renderer
from runner.models.base_digest import base_identity
from runner.models.build import (
    check_adapter,
    check_packing,
    peft_config,
    quantization_config,
    training_arguments,
)
from runner.models.model import Base, Precision, choose_precision, device, find_base, module_names
from runner.runs.resume import Start, find_start
from runner.runs.run_folder import RunFolder


@dataclass(frozen=True)
class TrainingSetup:
    """The checked parts of a training run.

    ``identity`` are the digests of the base, ``max_length`` (tokens) is where sequences are cut,
    ``arguments`` the trainer's. ``start`` is where training begins: at a checkpoint or at step 0.
    """

    base: Base
    identity: dict[str, Any]
    precision: Precision
    renderer: Renderer
    max_length: int | None
    quantization: Any
    arguments: Any
    start: Start
    warnings: list[str]

    def resume_facts(self, data: Data) -> dict[str, Any]:
        """What the manifest of a checkpoint keeps of the run, and must find again when it is resumed."""
        return {"data": data.train.fingerprint, "base": self.identity}

    def record_inputs(self, folder: RunFolder, data: Data) -> None:
        """Record which model is trained on which examples, with every warning so far."""
        folder.notes += [*self.base.notes, *self.warnings, *data.notes]
        folder.record |= {
            "model": self.base.record() | {"identity": self.identity},
            "precision": {
                "name": self.precision.name,
                "dtype": str(self.precision.dtype),
                "autocast": str(self.precision.autocast),
            },
            "data": {split.name: split.record() for split in (data.train, data.eval) if split},
            "rows_from_cache": data.cached,
        }
        folder.write()


def check_training(config: RunConfig, objective: Objective, folder: Path) -> TrainingSetup:
    """Find every config error that needs neither examples nor weights; checkpoints will go into ``folder``.

    Raises ``ConfigError``.
    """
    start = find_start(config)
    check_packing(config)
    check_shape(config)
    if config.push_to:
        from runner.runs.push_to_hub import check_publish

        check_publish(config)
    base = find_base(config.model)
    precision = choose_precision(config)
    template_notes = apply_template(base.tokenizer, config.template)
    renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
    stop_warnings = check_turns(base, renderer, objective.generates and config.data.format != "text")
    max_length = row_limit(config, base.config)
    has_cuda = device().type == "cuda"
    arguments, warnings = training_arguments(config, precision, folder, has_cuda)
    peft_config(config, objective.task_type)
    modules = module_names(base.config, config.model.trust_remote_code)
    check_adapter(config, objective.task_type, base, modules, has_cuda)
    identity = base_identity(base, config.seed, precision.dtype)
    return TrainingSetup(
        base=base,
        identity=identity,
        precision=precision,
        renderer=renderer,
        max_length=max_length,
        quantization=quantization_config(config, precision, objective.task_type),
        arguments=arguments,
        start=start,
        warnings=[*start.notes, *warnings, *template_notes, *stop_warnings, *check_base(config, identity)],
    )


def total_steps(arguments: Any, rows: int) -> int:
    """Optimizer steps of the run, as the trainer will count them without packing."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    return max(
        1, math.ceil(math.ceil(batches / arguments.gradient_accumulation_steps) * arguments.num_train_epochs)
    )
