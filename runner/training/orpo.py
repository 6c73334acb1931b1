"""TRL's experimental ORPO trainer on rows that are rendered and masked already."""

from __future__ import annotations

from typing import Any

from trl.experimental.orpo import ORPOTrainer

from runner.training.trainer import GuardedTrainer


class OddsRatioTrainer(GuardedTrainer, ORPOTrainer):
    """``ORPOTrainer`` on ``chosen_`` and ``rejected_`` rows of ``input_ids`` and ``labels``.

    As in TRL, the likelihood part of the loss runs over the prompt too (ORPO, arXiv:2403.07691, equation 6).
    """

    _total_train_tokens = 0

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Only the attention masks are missing."""
        sides = ("chosen", "rejected")
        return {f"{side}_attention_mask": [1] * len(feature[f"{side}_input_ids"]) for side in sides}

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One step, whose tokens are counted."""
        masks = (value for key, value in inputs.items() if key.endswith("_attention_mask"))
        self._total_train_tokens += sum(int(mask.sum()) for mask in masks)
        return super().training_step(model, inputs, *args, **kwargs)
