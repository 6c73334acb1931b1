"""Sequence classification: the class of a text, scored by accuracy and F1."""

from __future__ import annotations

from typing import Any

from runner.config.objective import Objective, SavedHead


def _trainer() -> Any:
    from runner.training.classifier import GuardedClassifierTrainer

    return GuardedClassifierTrainer


def _head(data: Any, saved: SavedHead | None) -> list[str]:
    """One output for each class; the classes of the examples become their numbers."""
    from runner.data.splits import number_classes

    return number_classes(data, saved)


OBJECTIVE = Objective(
    kind="classification",
    tag="text-classification",
    trainer=_trainer,
    task_type="SEQ_CLS",
    head=_head,
    scores=("eval_loss", "eval_accuracy", "eval_f1"),
)
