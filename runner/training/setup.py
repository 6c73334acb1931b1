"""What training needs before its weights are loaded, and every config error that can be found by then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.adapters import adapters, check_shape
from runner.config.objective import Objective
from runner.config.settings import DataSettings, RunConfig
from runner.core.errors import ConfigError, Issue
from runner.data.chat_template_check import apply_template
from runner.data.foreign import foreign_rows
from runner.data.max_length import row_limit
from runner.data.splits import Data
from runner.data.stop_tokens import check_turns
from runner.data.template import Renderer
from runner.models.adapter import try_adapter
from runner.models.adapter_fit import add_saved, on_empty
from runner.models.base_digest import base_identity
from runner.models.build import (
    check_adapter,
    check_packing,
    peft_config,
    quantization_config,
    training_arguments,
)
from runner.models.check_fp8 import check_machine
from runner.models.check_loading import check_loading
from runner.models.empty_model import empty_model, module_names
from runner.models.model import Base, Precision, choose_precision, device, find_base
from runner.rules.measures import WITHOUT_WARMUP
from runner.rules.scale import scale_notes
from runner.runs.parents import adapter_digest
from runner.runs.resume import Start, find_start
from runner.runs.run_folder import RunFolder
from runner.speed.pieces import Pieces, choose_pieces
from runner.training.argument_checks import check_optimizer, check_placed


@dataclass(frozen=True)
class TrainingSetup:
    """The checked parts of a training run.

    ``identity`` are the digests of the base, ``max_length`` (tokens) is where sequences are cut,
    ``arguments`` the trainer's, ``data`` which rows. ``start`` is where training begins: at a checkpoint or
    at step 0. ``parents`` are the digests of the adapters that it begins with,
    ``pieces`` those of ``speed``.
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
    warnings: list[str]

    def resume_facts(self, data: Data) -> dict[str, Any]:
        """What the manifest of a checkpoint keeps of the run, and must find again when it is resumed."""
        return {"data": data.train.fingerprint, "base": self.identity, "parents": self.parents}

    def inputs(self, data: Data) -> dict[str, Any]:
        """What ``run.json`` says of the model and the examples that a run is trained with."""
        return {
            "model": self.base.record() | {"identity": self.identity},
            "precision": {
                "name": self.precision.name,
                "dtype": str(self.precision.dtype),
                "autocast": str(self.precision.autocast),
            },
            "speed": self.pieces.record(),
            "data": {split.name: split.record() for split in (data.train, data.eval) if split},
            "rows_from_cache": data.cached,
        }

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

    def record_inputs(self, config: RunConfig, folder: RunFolder, data: Data) -> None:
        """Record which model is trained on which examples, with every warning so far.

        ``config`` is the run's own, where several cells share this setup.
        """
        foreign = foreign_rows(self.data)
        folder.notes += [*self.base.notes, *self.warnings, *data.notes, *filter(None, [foreign])]
        folder.notes += scale_notes(config)
        if not self.packs:
            folder.notes += self.warmup_notes(len(data.train.rows))
        folder.record |= self.inputs(data)
        for parent in folder.record.get("parents", ()):
            if parent["kind"] == "model":
                parent["digest"] = self.identity["weights"]
        folder.warn_of_other_inputs()
        folder.write()


def check_training(config: RunConfig, objective: Objective, folder: Path) -> TrainingSetup:
    """Find every config error that needs neither examples nor weights; checkpoints will go into ``folder``.

    Raises ``ConfigError``.
    """
    start = find_start(config)
    check_packing(config)
    check_machine(config)
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
    if issues := list(check_placed(arguments, base.config, has_cuda)):
        raise ConfigError(issues)
    classes = ["score"] if objective.task_type == "SEQ_CLS" else None  # new, of any size
    if config.adapter:
        classes = adapters(config)[0].base.get("classes")
    identity = base_identity(base, config.seed, precision.dtype)
    loading_warnings = check_loading(config, base, identity, classes)
    unsupported_loss = _check_adapter(config, objective, base, arguments, classes)
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
        warnings=[*start.notes, *warnings, *template_notes, *stop_warnings, *loading_warnings],
    )


def _check_adapter(
    config: RunConfig, objective: Objective, base: Base, arguments: Any, classes: list[str] | None
) -> str | None:
    """Check ``lora`` and the optimizer's patterns against the model's modules. Raises ``ConfigError``.

    Returns why the loss cannot be made of the tokens' log-probabilities, as far as it is known without
    weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    from runner.speed.token_loss import unsupported_loss

    adapter = peft_config(config, objective.task_type)
    modules = module_names(base)
    if issues := list(check_optimizer(config, arguments, modules)):
        raise ConfigError(issues)
    check_adapter(config, objective.task_type, base, modules, device().type == "cuda")
    if not modules:
        return None
    if config.adapter:
        tried = [add_saved(empty_model(base, classes), found) for found in on_empty(base, adapters(config))]
    elif adapter is None:
        return "every weight is trained, the head's too"
    elif adapter.is_prompt_learning:
        return "prompt learning has tokens of its own"
    else:
        tried = [try_adapter(base, adapter, classes)]
    for model in tried:
        # TRL's losses multiply with the head's own weight, past what is on it, which would learn nothing
        head = model.get_output_embeddings()
        if isinstance(head, (BaseTunerLayer, TrainableTokensWrapper)):
            message = "an adapter on the output head would not be trained"
            if isinstance(head, TrainableTokensWrapper):
                message += ", and the embedding is tied to the head"
            hint = "'lora.modules_to_save=[lm_head]' trains the whole head"
            raise ConfigError(Issue("lora.target_modules", message, hint))
    return unsupported_loss(tried[0]) if tried else None


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
