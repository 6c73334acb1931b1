"""Supervised fine-tuning: refuse what is wrong, load, score, train, score again, save."""

from __future__ import annotations

import math
from typing import Any

from runner import console, environment
from runner.adapter import AdapterSaver, add_adapter, changes_base, continue_adapter, set_base
from runner.artifacts import RunFolder
from runner.card import model_card
from runner.components import (
    check_adapter,
    check_packing,
    peft_config,
    quantization_config,
    training_arguments,
)
from runner.errors import Diverged
from runner.model import choose_precision, device, find_base, linear_modules, load_model
from runner.prepare import prepare
from runner.resume import find_checkpoint
from runner.settings import RunConfig
from runner.template import Renderer, apply_template


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train one adapter, or the whole model, in a run folder. Raises ``Refused`` before loading weights."""
    with folder.timed("check"):
        checkpoint = find_checkpoint(config)
        check_packing(config)
        base = find_base(config.model)
        precision = choose_precision(config)
        apply_template(base.tokenizer, config.template)
        renderer = Renderer(base.tokenizer, config.template, config.data.train_on)
        quantization = quantization_config(config, precision)
        has_cuda = device().type == "cuda"
        arguments, notes = training_arguments(config, precision, folder.path, has_cuda)
        peft_config(config)
        names = linear_modules(base.config, config.model.trust_remote_code)
        check_adapter(config, base, names, has_cuda)
    with folder.timed("data"):
        data = prepare(config.data, renderer, arguments.max_length, config.seed)
    steps = _total_steps(arguments, len(data.train.rows))
    folder.notes += [*base.notes, *notes, *data.notes]
    folder.record |= {
        "model": base.record(),
        "data": {split.name: split.record() for split in (data.train, data.eval) if split},
    }
    folder.write()
    console.opening(config, data, precision, steps, folder)

    with folder.timed("load"):
        model: Any = load_model(base, quantization, precision.dtype, config.seed)
        adapter = peft_config(config, steps)
        if config.adapter:
            model = continue_adapter(model, config.adapter)
        elif adapter is not None:
            model = add_adapter(model, adapter, config.seed, base.folder)
        saver = AdapterSaver(model) if adapter is not None else None
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        folder.metrics |= {"trainable_parameters": trained, "total_parameters": _total_parameters(model)}

    from runner.scoring import Judge
    from runner.trainer import SupervisedTrainer, all_finite

    judge = Judge(config, renderer, data.eval, precision)
    with folder.timed("score_before"):
        before = judge.answer(
            model, "before training", base_only=not config.adapter and not changes_base(adapter)
        )

    progress = console.TrainingProgress(steps)

    def on_log(entry: dict[str, Any]) -> None:
        progress.update(entry)
        folder.log({key: value for key, value in entry.items() if key != "max_steps"})

    held_out = data.eval.dataset() if data.eval else None
    trainer = SupervisedTrainer(model, arguments, base.tokenizer, data.train.dataset(), held_out, on_log)
    with folder.timed("train"), progress:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not all_finite(model):
        raise Diverged("a trained weight is not finite; nothing was saved")
    tokens = trainer.state.num_input_tokens_seen or trainer._total_train_tokens
    folder.metrics |= {
        "train_loss": result.training_loss,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "tokens_per_second": round(tokens / max(folder.times["train"], 1e-9), 1),
        "peak_memory_bytes": environment.peak_memory(),
    }
    if held_out is not None:
        with folder.timed("evaluate"):
            folder.metrics["eval_loss"] = trainer.evaluate()["eval_loss"]

    with folder.timed("save"):
        target = folder.path / ("adapter" if saver else "model")
        if saver is not None:
            saver.save(target)
            set_base(target, config.model.path or f"random:{config.model.architecture}")
        else:
            model.save_pretrained(target)
        base.tokenizer.save_pretrained(target)

    with folder.timed("score_after"):
        after = judge.answer(model, "after training")
    folder.metrics |= judge.scores(before, after)
    samples = judge.samples(before, after)
    folder.write_lines("samples.jsonl", samples)
    console.samples(samples)
    (target / "README.md").write_text(model_card(config, folder.record), encoding="utf-8")


def _total_steps(arguments: Any, rows: int) -> int:
    """Optimizer steps of the run, as the trainer will count them without packing."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    return max(
        1, math.ceil(math.ceil(batches / arguments.gradient_accumulation_steps) * arguments.num_train_epochs)
    )


def _total_parameters(model: Any) -> int:
    """Parameters of the model, 4-bit ones counted unpacked."""
    packed = {"Params4bit"}
    return sum(
        p.numel() * (2 * p.element_size() if type(p).__name__ in packed else 1) for p in model.parameters()
    )
