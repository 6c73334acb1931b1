"""Kahneman-Tversky optimisation: learn from answers that were liked or not (TRL's KTOTrainer)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runner.config.objective import Objective
from runner.config.recipes.loss_rules import zero_beta


def _trainer() -> Any:
    from runner.training.kto import GuardedKTOTrainer

    return GuardedKTOTrainer


def _check(trainer: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    given = trainer.get("loss_type")
    losses = given if isinstance(given, list) else [given]
    yield from zero_beta(trainer, losses)
    order = trainer.get("train_sampling_strategy", "sequential")
    if "kto" in losses and order != "sequential":
        key = "trainer.train_sampling_strategy"
        message = f"{key}={order}: the KL term of KTO pairs each row with the one before it"
        yield key, message, "sequential; trainer.loss_type=apo_zero_unpaired has none"
    key = "trainer.per_device_train_batch_size"
    if "kto" in losses and trainer.get("per_device_train_batch_size", 8) < 2:
        message = f"{key}=1: the KL term of KTO is estimated from other rows of the batch"
        yield key, message, "at least 2; trainer.loss_type=apo_zero_unpaired has none"


OBJECTIVE = Objective(
    kind="unpaired_preference",
    tag="kto",
    trainer=_trainer,
    reference=True,
    check=_check,
    scores=("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"),
)
