"""TRL's experimental ORPO trainer on examples that are tokenised and masked already."""

from __future__ import annotations

from typing import Any

from trl.experimental.orpo import ORPOTrainer

from runner.training.trainer import GuardedTrainer


class GuardedORPOTrainer(GuardedTrainer, ORPOTrainer):
    """``ORPOTrainer`` on ``chosen_`` and ``rejected_`` sequences of ``input_ids`` and ``labels``.

    As in TRL, the likelihood part of the loss runs over the prompt too (ORPO, arXiv:2403.07691, equation 6).
    """

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Called by ``ORPOTrainer`` for each example: only the attention masks are to be added."""
        sides = ("chosen", "rejected")
        return {f"{side}_attention_mask": [1] * len(feature[f"{side}_input_ids"]) for side in sides}

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One step, whose tokens are counted."""
        masks = (value for key, value in inputs.items() if key.endswith("_attention_mask"))
        self._total_train_tokens += sum(int(mask.sum()) for mask in masks)
        return super().training_step(model, inputs, *args, **kwargs)

    def eval_metrics(self) -> dict[str, list[float]]:
        """ORPO's trainer collects them elsewhere, under their full names."""
        return self._stored_metrics["eval"]

    def eval_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """The likelihood term is a mean over the tokens of the chosen sequences, all else one over pairs."""
        tokens = {side: int(inputs[f"{side}_attention_mask"][:, 1:].sum()) for side in ("chosen", "rejected")}
        logits = {f"logits/{side}": count for side, count in tokens.items()}
        return {"": len(inputs["chosen_input_ids"]), "nll_loss": tokens["chosen"], **logits}

    def eval_parts(self, loss: float, metrics: dict[str, float]) -> dict[str, float]:
        """The loss without its likelihood term, which weighs otherwise."""
        return {**metrics, "loss": loss - metrics["eval_nll_loss"]}

    def eval_result(self, means: dict[str, float]) -> dict[str, float]:
        """The loss from its two terms."""
        return {**means, "loss": means["loss"] + means["eval_nll_loss"]}

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """As TRL's; in an evaluation the logits, which are only averaged, are those of the tokens, not of the
        padding too."""
        chosen_logps, rejected_logps, chosen, rejected, *losses = super().concatenated_forward(model, batch)
        if not model.training:
            chosen = _of_tokens(chosen, batch["chosen_attention_mask"])
            rejected = _of_tokens(rejected, batch["rejected_attention_mask"])
        return chosen_logps, rejected_logps, chosen, rejected, *losses


def _of_tokens(logits: Any, mask: Any) -> Any:
    """The logits [tokens, vocabulary] that stand before a token of their row [rows, length]."""
    length = mask.shape[1] - 1
    return logits[:, :length][mask[:, 1:].bool().to(logits.device)]
