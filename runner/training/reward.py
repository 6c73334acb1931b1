"""TRL's reward model trainer on rows that are rendered already."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl.trainer.reward_trainer import RewardTrainer

from runner.training.trainer import GuardedTrainer


class GuardedRewardTrainer(GuardedTrainer, RewardTrainer):
    """``RewardTrainer`` on ``chosen_`` and ``rejected_`` rows: the better answer shall score higher."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        columns = {f"{side}_input_ids": f"{side}_ids" for side in ("chosen", "rejected")}
        return dataset.rename_columns(columns) if "chosen_input_ids" in dataset.column_names else dataset

    def eval_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """Everything is a mean over pairs, each of two rows."""
        return {"": len(inputs["input_ids"]) // 2}
