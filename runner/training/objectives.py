"""What each training recipe learns from, and the trainer and the PEFT task that go with it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from runner.data.formats import Kind


@dataclass(frozen=True)
class Objective:
    """The kind of rows, PEFT's task type, and the trainer's class as ``MODULE:CLASS``.

    ``reference`` says that the loss compares with a frozen copy of the model as it was at the start.
    ``packed`` names the objective of a pack of cells; without one every cell runs alone.
    """

    kind: Kind
    trainer: str
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM"
    reference: bool = False
    packed: str = ""

    @property
    def generates(self) -> bool:
        """Whether the trained model writes answers, so that it can be scored by them."""
        return self.task_type == "CAUSAL_LM"

    def trainer_class(self) -> Any:
        """Import the trainer, and with it TRL and torch."""
        return _imported(self.trainer)

    def packed_class(self) -> Any:
        """Import the objective of a pack."""
        return _imported(self.packed)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


OBJECTIVES = {
    "sft": Objective(
        "completion", "runner.training.trainer:SupervisedTrainer", packed="runner.packed.objective:Answers"
    ),
    "dpo": Objective(
        "preference",
        "runner.training.preference:DirectPreferenceTrainer",
        reference=True,
        packed="runner.packed.preference:Pairs",
    ),
    "kto": Objective("unpaired_preference", "runner.training.preference:FeedbackTrainer", reference=True),
    "orpo": Objective("preference", "runner.training.orpo:OddsRatioTrainer"),
    "reward": Objective("preference", "runner.training.reward:RewardModelTrainer", "SEQ_CLS"),
    "classify": Objective("classification", "runner.training.classifier:ClassifierTrainer", "SEQ_CLS"),
}
