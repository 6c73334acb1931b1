"""What training needs before its weights are loaded, and every config error that can be found by then."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.settings import DataSettings, RunConfig
from runner.core.errors import ConfigError
from runner.data.chat_template_check import apply_template
from runner.data.foreign import foreign_rows
from runner.data.max_length import row_limit
from runner.data.splits import Data
from runner.data.stop_tokens import check_turns
from runner.data.template import Renderer
from runner.models.adapted import Adapted
from runner.models.adapter_fit import check_shape
from runner.models.base import method_name
from runner.models.base_digest import base_identity
from runner.models.build import quantization_config, training_arguments
from runner.models.check_fp8 import check_machine
from runner.models.check_loading import check_loading
from runner.models.model import Base, Precision, choose_precision, device, find_base
from runner.rules.measures import WITHOUT_WARMUP
from runner.rules.scale import scale_notes
from runner.runs.parents import adapter_digest
from runner.runs.resume import Start, find_start
from runner.runs.run_folder import RunFolder
from runner.speed.pieces import Pieces, choose_pieces
from runner.speed.row_separation import check_packing
from runner.training.argument_checks import check_lora, check_placed


@dataclass(frozen=True)
class TrainingSetup:
    """The checked parts of a training run.

    ``identity`` are the digests of the base, ``max_length`` (tokens) is where sequences are cut,
    ``arguments`` the trainer's, ``data`` which rows. ``start`` is where training begins: at a checkpoint or
    at step 0. ``parents`` are the digests of the adapters that it begins with,
    ``pieces`` those of ``speed``, ``adapted`` what of the base has adapters, as far as that is known.
    """

    base: Base
    identity: dict[str, Any]
    precision: Precision
    renderer: Renderer
    max_length: int | None
    quantization: Any
    arguments: Any
    start: Start
    data: DataSettings
    parents: list[str | None]
    pieces: Pieces
    adapted: Adapted | None
    warnings: list[str]
    argument_warnings: list[str]

    def of_cell(self, config: RunConfig, folder: Path) -> TrainingSetup:
        """The same with the arguments of another cell of a pack, and what is to be said of these.

        It has all else in common with the cell that was checked; checkpoints go into ``folder``.
        """
        has_cuda = device().type == "cuda"
        arguments, warnings = training_arguments(config, self.precision, folder, has_cuda)
        return replace(self, arguments=arguments, argument_warnings=warnings)

    def resume_facts(self, data: Data) -> dict[str, Any]:
        """What the manifest of a checkpoint keeps of the run, and must find again when it is resumed."""
        return {
            "data": data.train.fingerprint,
            "held_out": data.eval.fingerprint if data.eval else None,
            "base": self.identity,
            "parents": self.parents,
        }

    def inputs(self, data: Data) -> dict[str, Any]:
        """What ``run.json`` says of the model and the examples that a run is trained with."""
        return {
            "model": self.base.record(self.quantization) | {"identity": self.identity},
            "precision": {
                "name": self.precision.name,
                "dtype": str(self.precision.dtype),
                "autocast": str(self.precision.autocast),
            },
            "speed": self.pieces.record(),
            **({"adapted": self.adapted.record()} if self.adapted else {}),
            "data": {split.name: split.record() for split in (data.train, data.eval) if split},
            "rows_from_cache": data.cached,
        }

    def method_line(self, config: RunConfig) -> str:
        """How the base is trained and in what precision: "Lora over nf4, bf16"."""
        return f"{method_name(config.lora, self.base.quantised(self.quantization))}, {self.precision.name}"

    def adapted_line(self) -> str:
        """What of the base is adapted, in one line; empty where every weight is trained, or none of it."""
        return self.adapted.line() if self.adapted else ""

    @property
    def packs(self) -> bool:
        """Whether the trainer packs rows into fewer, of which it alone knows the number."""
        return bool(getattr(self.arguments, "packing", False))

    def warmup_notes(self, rows: int) -> list[str]:
        """A warning where warmup never ends: its first step has a learning rate of 0, and a run of one step
        no other. ``rows`` are those that the trainer makes batches of."""
        steps = total_steps(self.arguments, rows)
        schedule = str(self.arguments.lr_scheduler_type.value)
        if self.arguments.get_warmup_steps(steps) < steps or schedule in WITHOUT_WARMUP:
            return []
        what = (
            "the only step has a learning rate of 0: nothing is trained"
            if steps == 1
            else f"all {steps} steps are warmup: the learning rate does not reach trainer.learning_rate"
        )
        return [f"{what}; trainer.warmup_steps=0, or more steps"]

    def evaluation_notes(self, config: RunConfig) -> list[str]:
        """A warning where trainer.eval_steps is left to the library: it evaluates as often as it logs."""
        if config.trainer.get("eval_strategy") != "steps" or config.trainer.get("eval_steps"):
            return []
        every = f"{self.arguments.eval_steps:g} steps" if self.arguments.eval_steps > 1 else "step"
        return [f"evaluates all held-out rows after every {every}; trainer.eval_steps=100 does so less often"]

    def record_inputs(self, config: RunConfig, folder: RunFolder, data: Data) -> None:
        """Record which model is trained on which examples, with every warning so far.

        ``config`` is the run's own.
        """
        foreign = foreign_rows(self.data)
        folder.notes += [*self.base.notes, *self.warnings, *self.argument_warnings]
        folder.notes += [*data.notes, *filter(None, [foreign])]
        folder.notes += scale_notes(config) + self.evaluation_notes(config)
        if not self.packs:
            folder.notes += self.warmup_notes(len(data.train.rows))
        folder.record |= self.inputs(data)
        for parent in folder.record.get("parents", ()):
            if parent["kind"] == "model":
                parent["digest"] = self.identity["weights"]
        folder.warn_of_other_inputs()
        folder.write()


def check_training(
    config: RunConfig, objective: Objective, folder: Path, processes: int = 1
) -> TrainingSetup:
    """Find every config error that needs neither examples nor weights; checkpoints will go into ``folder``.

    The arguments are those of one process that computes what so many ``processes`` share.

    Raises ``ConfigError``.
    """
    start = find_start(config)
    check_machine(config)
    check_shape(config)
    if config.push_to:
        from runner.runs.push_to_hub import check_publish

        check_publish(config)
    base = find_base(config.model)
    packing_notes = check_packing(config, base)
    precision = choose_precision(config)
    template_notes = apply_template(base.tokenizer, config.template)
    renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
    stop_warnings = check_turns(base, renderer, objective.generates and config.data.format != "text")
    max_length = row_limit(config, base.config)
    has_cuda = device().type == "cuda"
    arguments, warnings = training_arguments(config, precision, folder, has_cuda)
    if not config.parallel.keep_batch:
        arguments.gradient_accumulation_steps *= processes
    if issues := list(check_placed(arguments, base.config, has_cuda, config.parallel)):
        raise ConfigError(issues)
    classes = ["score"] if objective.task_type == "SEQ_CLS" else None  # new, of any size
    if config.adapter:
        classes = adapters(config)[0].base.get("classes")
    identity = base_identity(base, config.seed, precision.dtype)
    loading_warnings = check_loading(config, base, identity, classes)
    lora = check_lora(config, objective, base, arguments, classes, precision)
    unsupported_loss = lora.unsupported_loss
    if not objective.token_loss:
        unsupported_loss = f"recipe={config.recipe} has the library's own loss"
    pieces = choose_pieces(config, arguments, precision, unsupported_loss, has_cuda)
    if pieces.async_logging and not config.trainer.get("accelerator_config"):
        # else each batch is copied once the GPU has done all before, which then waits for the next one
        loader: Any = arguments.accelerator_config
        loader.non_blocking = True
    return TrainingSetup(
        base=base,
        identity=identity,
        precision=precision,
        renderer=renderer,
        max_length=max_length,
        quantization=quantization_config(config, precision, objective.task_type),
        arguments=arguments,
        start=start,
        data=config.data,
        pieces=pieces,
        parents=[adapter_digest(adapter.folder) for adapter in adapters(config)],
        adapted=lora.adapted,
        warnings=[
            *(
                *start.notes,
                *packing_notes,
                *template_notes,
                *stop_warnings,
                *loading_warnings,
                *lora.warnings,
            )
        ],
        argument_warnings=warnings,
    )


def opening_notes(config: RunConfig, folder: RunFolder) -> list[str]:
    """The warnings of a run for its opening table; a sweep has said of all its cells which scales are odd."""
    said = scale_notes(config) if folder.is_cell else []
    return [note for note in folder.notes if note not in said]


def total_steps(arguments: Any, rows: int) -> int:
    """Optimizer steps of the run, as the trainer will count them without packing."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    return max(
        1, math.ceil(math.ceil(batches / arguments.gradient_accumulation_steps) * arguments.num_train_epochs)
    )
