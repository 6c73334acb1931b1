"""Odds ratio preference optimisation, without a reference model (TRL's ORPOTrainer, experimental)."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective


def _trainer() -> Any:
    from runner.training.orpo import GuardedORPOTrainer

    return GuardedORPOTrainer


OBJECTIVE = Objective(
    kind="preference",
    tag="orpo",
    trainer=_trainer,
    # their tokens come in front of the logits, which TRL lines up with the row's own
    adapters_refused=(
        *("PromptTuningConfig", "MultitaskPromptTuningConfig"),
        *("PromptEncoderConfig", "CPTConfig"),
    ),
    scores=("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"),
)
