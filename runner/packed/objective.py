"""The objective of a pack: from examples to each cell's loss; and that of supervised fine-tuning."""

from __future__ import annotations

from typing import Protocol

import torch

from runner.packed.batches import Collator
from runner.packed.cell import CellState
from runner.packed.passes import Batch, Passes
from runner.speed.token_loss import TokenLogprobs


class PackObjective(Protocol):
    """From examples to batches, and from the log-probabilities of a batch to each cell's loss and metrics.

    ``sequences`` counts those of an example: a batch has the first ones of a cell's examples (chosen), then
    the second ones (rejected). ``metrics`` names what is logged beside the loss, and ``mean_logits`` says
    whether the scores shall have these.
    """

    sequences: int
    metrics: tuple[str, ...]
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

    def weights(self, batch: Batch, cells: int) -> dict[str, torch.Tensor]:
        """What the metrics of a batch are means over, by name and for all others under ``""``, each
        [cells]."""
        ...

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]) -> torch.Tensor:
        """Loss and weight of each row, [cells, rows, 2]: the held-out loss is their weighted mean."""
        ...
