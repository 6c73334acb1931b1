"""What a pack trains on: its objective, and the objective of supervised fine-tuning, which is answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from runner.data.labels import IGNORE
from runner.packed.batches import Collator
from runner.packed.member import Member, by_member, shares
from runner.training.token_loss import TokenLogprobs

if TYPE_CHECKING:
    from runner.packed.trainer import PackedTrainer

Batch = dict[str, torch.Tensor]  # on the host: of each member the same number of rows, member after member


class PackObjective(Protocol):
    """From rows to batches, and from the scores of a batch's tokens to each member's loss and figures.

    ``sides`` are the sequences of a row: a batch has those of the first side of a member's rows, then those
    of the second. ``figures`` names what is logged beside the loss, ``weighted`` says whether an evaluation
    counts the figures of a batch by its rows, and ``mean_logits`` whether the scores shall have these.
    """

    sides: int
    figures: tuple[str, ...]
    weighted: bool
    mean_logits: bool
    collator: Collator

    def start(self, trainer: PackedTrainer) -> None:
        """Called once, before the first step and before a checkpoint is read."""
        ...

    def divisors(self, batches: list[Batch], members: int) -> torch.Tensor:
        """What the losses of an optimizer step of these batches are divided by, [members] on the host."""
        ...

    def measure(
        self, scores: TokenLogprobs, batch: Batch, members: list[Member]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The undivided losses [members], and the figures, each [members] and without gradient."""
        ...

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, members: list[Member]) -> torch.Tensor:
        """Loss and weight of each row, [members, rows, 2]; not a number where rows have none of their own."""
        ...


class Answers:
    """The mean over the labelled tokens of an optimizer step, as TRL's ``SFTTrainer`` takes it."""

    sides = 1
    figures = ("entropy", "mean_token_accuracy")
    weighted = False
    mean_logits = False

    def __init__(self, pad_token_id: int, **_: Any) -> None:
        self.collator = Collator(pad_token_id)

    def start(self, trainer: PackedTrainer) -> None:
        """Nothing: the rows say it all."""

    def divisors(self, batches: list[Batch], members: int) -> torch.Tensor:
        """Labelled tokens of each member."""
        masks = [batch["labels"][:, 1:] != IGNORE for batch in batches]
        return torch.stack([by_member(mask, members) for mask in masks]).sum(0).clamp(min=1)

    def measure(
        self, scores: TokenLogprobs, batch: Batch, members: list[Member]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Summed loss (nats), entropy and accuracy."""
        return -by_member(scores.log_probs, len(members)), shares(scores, len(members))

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, members: list[Member]) -> torch.Tensor:
        """Summed loss (nats) and labelled tokens."""
        sums = torch.stack([-scores.log_probs.sum(1), scores.mask.sum(1).to(scores.log_probs.dtype)], -1)
        return sums.unflatten(0, (len(members), -1))
