"""Supervised fine-tuning: learn to give the answers of the rows."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective


def _trainer() -> Any:
    from runner.training.trainer import SupervisedTrainer

    return SupervisedTrainer


def _packed() -> Any:
    from runner.packed.objective import PackedSft

    return PackedSft


OBJECTIVE = Objective(kind="completion", tag="sft", trainer=_trainer, packed=_packed)
