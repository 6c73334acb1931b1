"""A reward model: one score a conversation, higher for the better answer (TRL's RewardTrainer)."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective, SavedHead
from runner.core.errors import ConfigError, Issue


def _trainer() -> Any:
    from runner.training.reward import GuardedRewardTrainer

    return GuardedRewardTrainer


def _head(data: Any, saved: SavedHead | None) -> list[str]:
    """One output, whatever the data. Raises ``ConfigError`` for an adapter with a head of classes."""
    if saved is not None and len(saved.classes) > 1:
        message = f"has a head of {len(saved.classes)} classes, and a reward model gives one score"
        if saved.in_adapter:
            raise ConfigError(Issue(saved.where, message, "without adapter= a new head is trained"))
        data.notes.append(f"{saved.where} {message}: a new head is drawn")
    return ["reward"]


OBJECTIVE = Objective(
    kind="preference",
    tag="reward-model",
    trainer=_trainer,
    task_type="SEQ_CLS",
    head=_head,
    scores=("eval_loss", "eval_accuracy", "eval_margin"),
)
