"""The training recipes from top to bottom: refuse what is wrong, load, score, train, score again, save."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.adapters import adapters, check_base, check_shape, write_base
from runner.config.settings import RunConfig
from runner.core import console, environment
from runner.core.errors import Diverged
from runner.core.progress import TrainingProgress
from runner.data.max_length import row_limit
from runner.data.prepare import prepare
from runner.data.splits import Data, number_classes
from runner.data.stop_tokens import check_turns
from runner.data.template import Renderer, apply_template
from runner.models.adapter import AdapterSaver, add_adapter, changes_base, continue_adapter, set_base
from runner.models.base_digest import base_identity
from runner.models.build import (
    check_adapter,
    check_packing,
    peft_config,
    quantization_config,
    training_arguments,
)
from runner.models.model import Base, Precision, choose_precision, device, find_base, load_model, module_names
from runner.reports import terminal
from runner.runs.checkpoint import step_of
from runner.runs.model_card import model_card
from runner.runs.resume import Start, check_same, find_start
from runner.runs.run_folder import RunFolder
from runner.training.objectives import OBJECTIVES
from runner.training.out_of_memory import train_shrinking

if TYPE_CHECKING:
    from runner.evaluation.generate import HeldOutGenerator

# What an evaluation says about the model, by the library's names.
SCORES = (
    "eval_loss",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_accuracy",
    "eval_margin",
    "eval_f1",
)

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass
class Setup:
    """All that a run needs before its weights are loaded; rows are cut at ``max_length`` tokens."""

    base: Base
    identity: dict[str, Any]
    precision: Precision
    renderer: Renderer
    max_length: int | None
    quantization: Any
    arguments: Any
    start: Start
    notes: list[str]


def train(config: RunConfig, folder: RunFolder) -> None:
    """Train one adapter, or the whole model, in a run folder. Raises ``ConfigError`` before loading
    weights."""
    objective = OBJECTIVES[config.recipe]
    with folder.timed("check"):
        setup = check(config, folder.path)
    with folder.timed("data"):
        data = prepare(config.data, setup.renderer, setup.max_length, config.seed, objective.kind)
        classes = _classes(config, data)
        data.check_held_out()
        check_same(setup.start, facts(setup, data))
    steps = total_steps(setup.arguments, len(data.train.rows))
    folder.notes += [*setup.base.notes, *setup.notes, *data.notes]
    describe(folder, setup, data)
    terminal.opening(config, data, setup.precision, steps, folder.path, folder.notes)

    with folder.timed("load"):
        model, saver = _load(config, setup, steps, classes)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        folder.metrics |= {"trainable_parameters": trained, "total_parameters": total_parameters(model)}

    from runner.evaluation.generate import HeldOutGenerator

    fresh = not config.adapter and not changes_base(peft_config(config))
    generator = HeldOutGenerator(
        config, setup.renderer, data.eval if objective.generates else None, setup.precision
    )
    with folder.timed("score_before"):
        before = generator.answer(model, "before training", base_only=fresh)
    _fit(config, folder, setup, data, model, steps, fresh)
    target = folder.path / ("adapter" if saver else "model")
    with folder.timed("save"):
        if saver is not None:
            saver.save(target)
            complete_adapter(config, setup, target, classes)
        else:
            model.save_pretrained(target)
            setup.base.tokenizer.save_pretrained(target)
    with folder.timed("score_after"):
        after = generator.answer(model, "after training")
    terminal.samples(conclude(config, folder, target, generator, before, after))
    if config.push_to:
        from runner.runs.push_to_hub import publish

        publish(config, folder, target)


def describe(folder: RunFolder, setup: Setup, data: Data) -> None:
    """Record what is trained on which rows."""
    folder.record |= {
        "model": setup.base.record() | {"identity": setup.identity},
        "precision": {
            "name": setup.precision.name,
            "dtype": str(setup.precision.dtype),
            "autocast": str(setup.precision.autocast),
        },
        "data": {split.name: split.record() for split in (data.train, data.eval) if split},
        "rows_from_cache": data.cached,
    }
    folder.write()


def complete_adapter(config: RunConfig, setup: Setup, target: Path, classes: list[str] | None = None) -> None:
    """Put beside an adapter what makes it usable alone: its base's name and identity, its tokenizer."""
    set_base(target, config.model.path or f"random:{config.model.architecture}")
    write_base(target, dataclasses.asdict(config.model), setup.identity, classes)
    setup.base.tokenizer.save_pretrained(target)


def conclude(
    config: RunConfig,
    folder: RunFolder,
    target: Path,
    generator: HeldOutGenerator,
    before: list[str],
    after: list[str],
) -> list[dict[str, Any]]:
    """Keep the scores, the samples (which are returned) and the model card."""
    _doubt(folder)
    folder.metrics |= generator.scores(before, after)
    samples = generator.samples(before, after)
    folder.write_lines("samples.jsonl", samples)
    (target / "README.md").write_text(model_card(config, folder.record), encoding="utf-8")
    return samples


def _doubt(folder: RunFolder) -> None:
    """Say so when training has made the loss worse, which no exit code tells."""
    losses = [line["loss"] for line in folder.logged() if line.get("loss") is not None]
    last = losses[-max(1, len(losses) // 10) :]
    if losses and sum(last) / len(last) > max(1.1 * losses[0], losses[0] + 0.1):
        remark = f"the training loss rose from {losses[0]:.4g} to {sum(last) / len(last):.4g}"
        folder.notes.append(f"{remark}: the result is worse than what it began with")
        console.warn(folder.notes[-1])


def check(config: RunConfig, folder: Path) -> Setup:
    """Everything that can be refused without reading rows or weights; checkpoints go into ``folder``."""
    start = find_start(config)
    check_packing(config)
    check_shape(config)
    if config.push_to:
        from runner.runs.push_to_hub import check_publish

        check_publish(config)
    base = find_base(config.model)
    precision = choose_precision(config)
    apply_template(base.tokenizer, config.template)
    renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
    marks = check_turns(base, renderer, OBJECTIVES[config.recipe].generates and config.data.format != "text")
    max_length = row_limit(config, base.config)
    has_cuda = device().type == "cuda"
    arguments, notes = training_arguments(config, precision, folder, has_cuda)
    peft_config(config)
    check_adapter(config, base, module_names(base.config, config.model.trust_remote_code), has_cuda)
    identity = base_identity(base, config.seed, precision.dtype)
    notes += [*marks, *check_base(config, identity)]
    quantization = quantization_config(config, precision)
    notes = [*start.notes, *notes]
    return Setup(base, identity, precision, renderer, max_length, quantization, arguments, start, notes)


def facts(setup: Setup, data: Data) -> dict[str, Any]:
    """What a checkpoint keeps of the run, and must find again when it is gone on from."""
    return {"data": data.train.fingerprint, "base": setup.identity}


def _classes(config: RunConfig, data: Data) -> list[str] | None:
    """The outputs of the new head: classes of the rows, one score for a reward, None to write tokens."""
    if config.recipe == "classify":
        return number_classes(data)
    return ["reward"] if config.recipe == "reward" else None


def _load(
    config: RunConfig, setup: Setup, steps: int, classes: list[str] | None
) -> tuple[Any, AdapterSaver | None]:
    """The model that is trained, and what saves its adapter, if it has one."""
    base = setup.base
    model: Any = load_model(base, setup.quantization, setup.precision.dtype, config.seed, classes)
    adapter = peft_config(config, steps)
    if config.adapter:
        model = continue_adapter(model, adapters(config)[0].folder)
    elif adapter is not None:
        model = add_adapter(model, adapter, config.seed, base.folder)
    if setup.precision.autocast is not None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "modules_to_save" in name:
                parameter.data = parameter.data.float()  # bfloat16 would lose small updates
    return model, AdapterSaver(model) if adapter is not None or config.adapter else None


def _fit(
    config: RunConfig, folder: RunFolder, setup: Setup, data: Data, model: Any, steps: int, fresh: bool
) -> None:
    """Train and measure the loss on the held-out rows. Raises ``Diverged``."""
    from runner.training.trainer import all_finite

    start, progress = setup.start, TrainingProgress(steps)
    own = start.checkpoint and start.checkpoint.parent.parent == folder.path
    folder.rewind(step_of(start.checkpoint) if own else 0)
    with folder.timed("train"), progress:
        trainer, result = _train(config, folder, setup, data, model, progress, fresh)
    if not all_finite(model):
        raise Diverged("a trained weight is not finite; nothing was saved")
    tokens = trainer.tokens_seen
    folder.metrics |= {
        "train_loss": result.training_loss,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "tokens_per_second": round((tokens - trainer.resumed_tokens) / max(folder.times["train"], 1e-9), 1),
        "peak_memory_bytes": environment.peak_memory(),
    }
    if data.eval is not None:
        with folder.timed("evaluate"):
            scores = trainer.evaluate()
        folder.metrics |= {key.replace("/", "_"): scores[key] for key in SCORES if key in scores}


def _train(
    config: RunConfig,
    folder: RunFolder,
    setup: Setup,
    data: Data,
    model: Any,
    progress: TrainingProgress,
    fresh: bool,
) -> tuple[Any, Any]:
    """The trainer, and the result of its training."""
    objective, arguments, start = OBJECTIVES[config.recipe], setup.arguments, setup.start
    # smaller than the config's where an earlier start ran out of memory
    for name, size in start.facts.get("batch", {}).items():
        setattr(arguments, name, size)

    def on_log(entry: dict[str, Any]) -> None:
        progress.update(entry)
        folder.log({key: value for key, value in entry.items() if key != "max_steps"})

    def on_shrink(remark: str) -> None:
        folder.notes.append(f"{remark} (on_oom=shrink)")
        console.warn(folder.notes[-1])

    def build() -> Any:
        trainer = objective.trainer_class()(
            model,
            arguments,
            setup.base.tokenizer,
            data.train.dataset(),
            data.eval.dataset() if data.eval else None,
            on_log,
            **({"fresh": fresh} if objective.reference else {}),
        )
        trainer.on_shrink = on_shrink if config.on_oom else None
        trainer.facts = facts(setup, data) | {"batch": {name: getattr(arguments, name) for name in BATCH}}
        return trainer

    checkpoint = str(start.checkpoint) if start.checkpoint else None
    return train_shrinking(build, arguments, checkpoint, on_shrink if config.on_oom else None)


def total_steps(arguments: Any, rows: int) -> int:
    """Optimizer steps of the run, as the trainer will count them without packing."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    return max(
        1, math.ceil(math.ceil(batches / arguments.gradient_accumulation_steps) * arguments.num_train_epochs)
    )


def total_parameters(model: Any) -> int:
    """Parameters of the model, 4-bit ones counted unpacked."""
    packed = {"Params4bit"}
    return sum(
        p.numel() * (2 * p.element_size() if type(p).__name__ in packed else 1) for p in model.parameters()
    )
