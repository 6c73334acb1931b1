"""Held-out loss of all members of a pack, batch by batch as the library measures it, and row by row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from runner.packed.batches import distinct, evaluation_loader
from runner.packed.memory import run_in_chunks

if TYPE_CHECKING:
    from runner.packed.trainer import PackedTrainer


def evaluate_members(trainer: PackedTrainer) -> None:
    """Fill ``scores`` and ``held_out_rows`` of every member.

    ``eval_loss`` is the mean over batches, weighted by their rows, of a batch's loss: transformers'
    ``evaluation_loop``. The other figures are means over batches, weighted where the objective says so.
    """
    members, objective = trainer.members, trainer.objective
    lists, which = distinct([member.held_out for member in members])
    batch_size = trainer.args.per_device_eval_batch_size
    rows: list[torch.Tensor] = []
    totals: dict[str, Any] = dict.fromkeys(("loss", *objective.figures), 0.0)
    batches = seen = 0
    for batch in evaluation_loader(lists, which, batch_size, objective.sides, objective.collator):
        count = len(batch["lengths"]) // len(members)
        found = _evaluate_batch(trainer, batch)
        rows.append(found.pop("rows"))
        totals["loss"] += found.pop("loss") * count
        for name, values in found.items():
            totals[name] += values * (count if objective.weighted else 1)
        batches, seen = batches + 1, seen + count
    per_row = torch.cat(rows, dim=1).tolist()
    means = {"loss": (totals.pop("loss") / seen).tolist()}
    weights = seen if objective.weighted else batches
    means |= {name: (values / weights).tolist() for name, values in totals.items()}
    for index, member in enumerate(members):
        known = not all(math.isnan(weight) for _, weight in per_row[index])
        member.held_out_rows = [(loss, int(weight)) for loss, weight in per_row[index]] if known else []
        member.scores = {f"eval_{name}": values[index] for name, values in means.items()}


@torch.no_grad()
def _evaluate_batch(trainer: PackedTrainer, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    parts, objective = [], trainer.objective

    def run(first: int, last: int) -> None:
        part, members = trainer.show(batch, first, last), trainer.members[first:last]
        scores = trainer.score(part)
        losses, figures = objective.measure(scores, part, members)
        losses = losses / objective.divisors([part], len(members)).to(losses.device)
        parts.append({"loss": losses, "rows": objective.measure_rows(scores, part, members), **figures})

    trainer.cells_per_pass = run_in_chunks(len(trainer.members), trainer.cells_per_pass, run)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
