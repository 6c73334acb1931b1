"""TRL's trainer for supervised fine-tuning, on examples that are tokenised and masked already."""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from runner.data.labels import IGNORE
from runner.speed.flat import Flat
from runner.speed.placed import WithPlaces
from runner.speed.token_loss import TokenLogprobs, fast_decoder, token_logprobs
from runner.training.means import labelled
from runner.training.trainer import GuardedTrainer


class GuardedSFTTrainer(GuardedTrainer, SFTTrainer):
    """``SFTTrainer`` on rows that are already ``input_ids`` and ``labels``.

    Where the head is a plain frozen one, the loss comes from ``runner.speed.token_loss``, elsewhere from
    TRL.
    """

    def __init__(self, model: Any, args: SFTConfig, *rows: Any, **more: Any) -> None:
        if not args.packing:
            args.max_length = None  # the rows are cut already; TRL would look at each again
        super().__init__(model, args, *rows, **more)
        if args.packing:
            self.train_dataset = _labelled(self.train_dataset)
            self.eval_dataset = _labelled(self.eval_dataset)
        self.decoder = fast_decoder(self.model, self._context.pieces, self._context.without)
        if self.decoder is not None:
            self.data_collator: Any = WithPlaces(self.data_collator, self.decoder.flat)

    def eval_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """Loss, entropy and accuracy are means over the labelled tokens."""
        return {"": labelled(inputs["labels"])}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the labelled tokens of the batch, or of all batches of the optimizer step."""
        places, flat, tokens = (inputs.pop(name, None) for name in ("places", "flat", "tokens"))
        if self.decoder is None or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ids, labels = inputs["input_ids"], inputs["labels"]
        with self.accelerator.autocast():
            scores = token_logprobs(
                self.model,
                ids,
                labels,
                tuple(places),
                decoder=self.decoder,
                attention_mask=inputs["attention_mask"],
                flat=flat and Flat(*flat),
            )
        self._note(scores, tokens)
        count = scores.mask.sum() if num_items_in_batch is None else num_items_in_batch
        return -scores.log_probs.sum() / torch.as_tensor(count, device=scores.mask.device).clamp(min=1)

    def _note(self, scores: TokenLogprobs, tokens: int) -> None:
        """Keep the metrics that TRL logs with the loss, under its names."""
        mode = "train" if scores.log_probs.requires_grad else "eval"
        count = scores.mask.sum().clamp(min=1)
        found = {"entropy": scores.entropy, "mean_token_accuracy": scores.is_top1}
        for name, values in found.items():
            mean = (values.sum() / count).detach()
            self._metrics[mode][name].append(mean if self.late_log is not None else mean.item())
        self._total_train_tokens += tokens if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _labelled(packed: Any) -> Any:
    """The packed rows without those that train nothing, as the wrapped strategy cuts between two answers:
    their batch would have no loss, which is logged as 0."""
    if packed is None:
        return None
    return packed.filter(lambda row: any(label != IGNORE for label in row["labels"][1:]))
