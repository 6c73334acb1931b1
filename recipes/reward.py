"""A reward model: one score a conversation, higher for the better answer (TRL's RewardTrainer)."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective


def _trainer() -> Any:
    from runner.training.reward import RewardModelTrainer

    return RewardModelTrainer


def _head(data: Any) -> list[str]:
    """One output, whatever the data."""
    return ["reward"]


OBJECTIVE = Objective(
    kind="preference",
    tag="reward-model",
    trainer=_trainer,
    task_type="SEQ_CLS",
    head=_head,
    scores=("eval_loss", "eval_accuracy", "eval_margin"),
)
