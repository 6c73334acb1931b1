"""Odds ratio preference optimisation, without a reference model (TRL's ORPOTrainer, experimental)."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective


def _trainer() -> Any:
    from runner.training.orpo import OddsRatioTrainer

    return OddsRatioTrainer


OBJECTIVE = Objective(
    kind="preference",
    tag="orpo",
    trainer=_trainer,
    scores=("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"),
)
