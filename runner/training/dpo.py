"""TRL's trainer for direct preference optimisation, on examples that are tokenised and masked already."""

from __future__ import annotations

from typing import Any

from trl.trainer.dpo_trainer import DPOTrainer

from runner.speed.placed import WithPlaces
from runner.speed.token_loss import fast_decoder
from runner.training.dpo_loss import by_pair, pair_weights, use_chunked_loss
from runner.training.preference import ReferenceTrainer


class GuardedDPOTrainer(ReferenceTrainer, DPOTrainer):
    """``DPOTrainer`` on ``chosen_`` and ``rejected_`` rows of ``input_ids`` and ``labels``."""

    groups = {"": ("chosen_", "rejected_")}  # noqa: RUF012
    kept = ("ref_chosen_logps", "ref_rejected_logps")

    def __init__(self, model: Any, args: Any, *rows: Any, **more: Any) -> None:
        if not by_pair(args):
            args.per_device_eval_batch_size = 1  # the loss of a pair in a batch depends on the others
        super().__init__(model, args, *rows, **more)
        self.decoder = fast_decoder(model, self._context.pieces, self._context.without)
        if self.decoder is not None:
            self.data_collator = WithPlaces(self.data_collator, self.decoder.flat)
            use_chunked_loss(model, self.decoder)

    def eval_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """The loss and the rewards are means over pairs, what is read off tokens one over these."""
        chosen, rejected = inputs["completion_mask"][:, 1:].sum(1).chunk(2)
        return pair_weights(len(chosen), int(chosen.sum()), int(rejected.sum()))
