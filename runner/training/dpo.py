"""TRL's trainer for direct preference optimisation, on examples that are tokenised and masked already."""

from __future__ import annotations

from typing import Any

from trl.trainer.dpo_trainer import DPOTrainer

from runner.training.dpo_loss import use_chunked_loss
from runner.training.preference import ReferenceTrainer


class GuardedDPOTrainer(ReferenceTrainer, DPOTrainer):
    """``DPOTrainer`` on ``chosen_`` and ``rejected_`` rows of ``input_ids`` and ``labels``."""

    groups = {"": ("chosen_", "rejected_")}  # noqa: RUF012
    kept = ("ref_chosen_logps", "ref_rejected_logps")

    def __init__(self, model: Any, args: Any, *rows: Any, **more: Any) -> None:
        super().__init__(model, args, *rows, **more)
        use_chunked_loss(model, args)
