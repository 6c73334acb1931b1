"""The objective of a pack: from examples to each cell's loss; and that of supervised fine-tuning."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from runner.data.labels import IGNORE
from runner.packed.batches import Collator
from runner.packed.cell import CellState, by_cell, shares
from runner.packed.passes import Batch, Passes
from runner.training.token_loss import TokenLogprobs


class PackObjective(Protocol):
    """From examples to batches, and from the log-probabilities of a batch to each cell's loss and metrics.

    ``sequences`` counts those of an example: a batch has the first ones of a cell's examples (chosen), then
    the second ones (rejected). ``metrics`` names what is logged beside the loss, ``weighted`` says whether an
    evaluation weights the metrics of a batch by its examples, and ``mean_logits`` whether the scores shall
    have these.
    """

    sequences: int
    metrics: tuple[str, ...]
    weighted: bool
    mean_logits: bool
    collator: Collator

    def start(self, passes: Passes, cells: list[CellState], batch_size: int) -> None:
        """Called once, before the first step and before a checkpoint is read."""
        ...

    def divisors(self, batches: list[Batch], cells: int) -> torch.Tensor:
        """What the losses of an optimizer step of these batches are divided by, [cells] on the host."""
        ...

    def measure(
        self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The undivided losses [cells], and the metrics, each [cells] and without gradient."""
        ...

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]) -> torch.Tensor:
        """Loss and weight of each row, [cells, rows, 2]; not a number where rows have none of their own."""
        ...


class PackedSft:
    """The mean over the labelled tokens of an optimizer step, as TRL's ``SFTTrainer`` takes it."""

    sequences = 1
    metrics = ("entropy", "mean_token_accuracy")
    weighted = False
    mean_logits = False

    def __init__(self, pad_token_id: int, **_: Any) -> None:
        self.collator = Collator(pad_token_id)

    def start(self, passes: Passes, cells: list[CellState], batch_size: int) -> None:
        """Nothing: the examples are all that the loss needs."""

    def divisors(self, batches: list[Batch], cells: int) -> torch.Tensor:
        """Labelled tokens of each cell."""
        masks = [batch["labels"][:, 1:] != IGNORE for batch in batches]
        return torch.stack([by_cell(mask, cells) for mask in masks]).sum(0).clamp(min=1)

    def measure(
        self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Summed loss (nats), entropy and accuracy."""
        return -by_cell(scores.log_probs, len(cells)), shares(scores, len(cells))

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]) -> torch.Tensor:
        """Summed loss (nats) and labelled tokens."""
        sums = torch.stack([-scores.log_probs.sum(1), scores.mask.sum(1).to(scores.log_probs.dtype)], -1)
        return sums.unflatten(0, (len(cells), -1))
