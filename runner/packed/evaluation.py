"""Held-out loss of all members of a pack, batch by batch as the library measures it, and row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from runner.packed.member import by_member, shares
from runner.packed.rows import distinct, evaluation_loader

if TYPE_CHECKING:
    from runner.packed.trainer import PackedTrainer


def evaluate_members(trainer: PackedTrainer) -> None:
    """Fill ``scores`` and ``held_out_rows`` of every member.

    ``eval_loss`` is the mean over batches, weighted by their rows, of a batch's loss a token: transformers'
    ``evaluation_loop``. The other figures are means over batches.
    """
    members = trainer.members
    lists, which = distinct([member.held_out for member in members])
    batch_size = trainer.args.per_device_eval_batch_size
    rows: list[torch.Tensor] = []
    totals: dict[str, Any] = {"loss": 0.0, "entropy": 0.0, "mean_token_accuracy": 0.0}
    batches = seen = 0
    for batch in evaluation_loader(lists, which, batch_size, trainer.collator):
        count = len(batch["lengths"]) // len(members)
        found = _evaluate_batch(trainer, batch)
        rows.append(found.pop("rows"))
        totals["loss"] += found.pop("loss") * count
        for name, values in found.items():
            totals[name] += values
        batches, seen = batches + 1, seen + count
    per_row = torch.cat(rows, dim=1).tolist()
    means = {"loss": (totals.pop("loss") / seen).tolist()}
    means |= {name: (values / batches).tolist() for name, values in totals.items()}
    for index, member in enumerate(members):
        member.held_out_rows = [(loss, int(tokens)) for loss, tokens in per_row[index]]
        member.scores = {f"eval_{name}": values[index] for name, values in means.items()}


@torch.no_grad()
def _evaluate_batch(trainer: PackedTrainer, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    parts = []
    for first in range(0, len(trainer.members), trainer.at_once):
        last = min(first + trainer.at_once, len(trainer.members))
        scores = trainer.score(batch, first, last)
        sums = torch.stack([-scores.log_probs.sum(1), scores.mask.sum(1).to(scores.log_probs.dtype)], -1)
        losses = -by_member(scores.log_probs, last - first)
        losses /= by_member(scores.mask, last - first).clamp(min=1)
        rows = sums.unflatten(0, (last - first, -1))
        parts.append({"loss": losses, "rows": rows, **shares(scores, last - first)})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
