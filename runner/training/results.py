"""What training leaves in a run folder: the adapter made usable alone, scores, samples, the model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.adapters import Adapter, write_base
from runner.config.objective import Objective
from runner.config.settings import RunConfig
from runner.core import console, environment
from runner.core.errors import ConfigError, RunnerError
from runner.models.adapter import set_base
from runner.models.adapter_fit import add_saved, on_empty
from runner.models.base import Base
from runner.models.empty_model import empty_model
from runner.runs.model_card import card_facts, model_card
from runner.runs.run_folder import RunFolder
from runner.training.load import Trainable
from runner.training.setup import TrainingSetup

if TYPE_CHECKING:
    from runner.evaluation.generate import HeldOutGenerator


def kept_scores(objective: Objective, scores: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an evaluation that a run keeps, by their keys in run.json."""
    return {key.replace("/", "_"): scores[key] for key in objective.scores if key in scores}


def training_metrics(trainer: Any, train_loss: float, seconds: float) -> dict[str, Any]:
    """Loss, steps, tokens, tokens/s over ``seconds`` and peak memory (bytes) of a trainer that has ended; of
    several processes the one that took most."""
    trained = trainer.tokens_seen - trainer.resumed_tokens
    return {
        "train_loss": train_loss,
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens_seen,
        "tokens_per_second": round(trained / max(seconds, 1e-9), 1),
        "peak_memory_bytes": max(trainer.group.gather(environment.peak_memory())),
    }


def save_trained(
    config: RunConfig, setup: TrainingSetup, trained: Trainable, folder: Path, head: list[str] | None
) -> Path:
    """Write ``adapter/``, or ``model/`` where every weight was trained, into a run folder; returns it."""
    if trained.saver is None:
        target = folder / "model"
        trained.model.save_pretrained(target)
        setup.base.tokenizer.save_pretrained(target)
        return target
    target = folder / "adapter"
    trained.saver.save(target)
    complete_adapter(config, setup, target, head)
    return target


def complete_adapter(
    config: RunConfig, setup: TrainingSetup, target: Path, head: list[str] | None = None
) -> None:
    """Put beside an adapter what makes it usable alone: its base's name and identity, its tokenizer.

    Raises ``RunnerError`` where PEFT would not load all of it.
    """
    set_base(target, config.model.path or f"random:{config.model.architecture}")
    write_base(target, dataclasses.asdict(config.model), setup.identity, head)
    setup.base.tokenizer.save_pretrained(target)
    _check_saved(setup.base, target, head)


def _check_saved(base: Base, folder: Path, classes: list[str] | None) -> None:
    """Check that PEFT finds in the ``folder`` of a saved adapter all that was trained."""
    try:
        for found in on_empty(base, [Adapter("saved", folder, None)]):
            add_saved(empty_model(base, classes), found)
    except ConfigError as error:
        reasons = "; ".join(issue.message for issue in error.issues)
        raise RunnerError(f"PEFT cannot load what was saved in {folder}: {reasons}") from error


def conclude(
    config: RunConfig,
    objective: Objective,
    folder: RunFolder,
    target: Path,
    generator: HeldOutGenerator,
    answers: tuple[list[str], list[str]],
) -> list[dict[str, Any]]:
    """Keep the scores, the samples (which are returned) and the model card of what stands in ``target``.

    ``answers`` are those to the held-out prompts before and after training.
    """
    _warn_of_rising_loss(folder)
    folder.metrics |= generator.scores(*answers)
    for note in generator.notes(*answers):
        folder.notes.append(note)
        console.warn(note)
    samples = generator.samples(*answers)
    folder.write_lines("samples.jsonl", samples)
    card = model_card(config, folder.record, card_facts(objective.tag, target))
    (target / "README.md").write_text(card, encoding="utf-8")
    return samples


def _warn_of_rising_loss(folder: RunFolder) -> None:
    """Training that made the loss worse shows in no exit code."""
    losses = [line["loss"] for line in folder.logged() if line.get("loss") is not None]
    last = losses[-max(1, len(losses) // 10) :]
    if losses and sum(last) / len(last) > max(1.1 * losses[0], losses[0] + 0.1):
        change = f"the training loss rose from {losses[0]:.4g} to {sum(last) / len(last):.4g}"
        folder.notes.append(f"{change}: the result is worse than what it began with")
        console.warn(folder.notes[-1])
