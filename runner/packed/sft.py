"""The objective of a pack that is fine-tuned on completions."""

from __future__ import annotations

from typing import Any

import torch

from runner.data.labels import IGNORE
from runner.packed.batches import Collator
from runner.packed.cell import CellState, by_cell, shares
from runner.packed.passes import Batch, Passes
from runner.speed.token_loss import TokenLogprobs


class PackedSft:
    """The mean over the labelled tokens of an optimizer step, as TRL's ``SFTTrainer`` takes it."""

    sequences = 1
    metrics = ("entropy", "mean_token_accuracy")
    mean_logits = False

    def __init__(self, pad_token_id: int, **_: Any) -> None:
        self.collator = Collator(pad_token_id)

    def start(self, passes: Passes, cells: list[CellState], batch_size: int) -> None:
        """Nothing: the examples are all that the loss needs."""

    def divisors(self, batches: list[Batch], cells: int) -> torch.Tensor:
        """Labelled tokens of each cell."""
        return torch.stack([self.weights(batch, cells)[""] for batch in batches]).sum(0).clamp(min=1)

    def weights(self, batch: Batch, cells: int) -> dict[str, torch.Tensor]:
        """Labelled tokens of each cell."""
        return {"": by_cell(batch["labels"][:, 1:] != IGNORE, cells)}

    def measure(
        self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Summed loss (nats), entropy and accuracy."""
        return -by_cell(scores.log_probs, len(cells)), shares(scores, len(cells))

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]) -> torch.Tensor:
        """Summed loss (nats) and labelled tokens."""
        sums = torch.stack([-scores.log_probs.sum(1), scores.mask.sum(1).to(scores.log_probs.dtype)], -1)
        return sums.unflatten(0, (len(cells), -1))
