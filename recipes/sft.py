"""Supervised fine-tuning: learn to give the answers of the rows."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective


def _trainer() -> Any:
    from runner.training.sft import GuardedSFTTrainer

    return GuardedSFTTrainer


def _packed() -> Any:
    from runner.packed.sft import PackedSft

    return PackedSft


OBJECTIVE = Objective(kind="completion", tag="sft", trainer=_trainer, packed=_packed, token_loss=True)
