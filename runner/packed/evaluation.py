"""Held-out loss of all cells of a pack, batch by batch as the library measures it, and row by row."""

from __future__ import annotations

import math
from typing import Any

import torch

from runner.packed.batches import distinct, evaluation_loader
from runner.packed.cell import CellState
from runner.packed.objective import PackObjective
from runner.packed.passes import Batch, Passes


def evaluate_cells(passes: Passes, cells: list[CellState], objective: PackObjective, batch_size: int) -> None:
    """Fill ``scores`` and ``held_out_rows`` of every cell.

    ``eval_loss`` is the mean over batches, weighted by their rows, of a batch's loss: transformers'
    ``evaluation_loop``. The other metrics are means over batches, weighted where the objective says so.
    """
    lists, which = distinct([cell.held_out for cell in cells])
    rows: list[torch.Tensor] = []
    totals: dict[str, Any] = dict.fromkeys(("loss", *objective.metrics), 0.0)
    batches = seen = 0
    for batch in evaluation_loader(lists, which, batch_size, objective.sequences, objective.collator):
        count = len(batch["lengths"]) // len(cells)
        found = _evaluate_batch(passes, cells, objective, batch)
        rows.append(found.pop("rows"))
        totals["loss"] += found.pop("loss") * count
        for name, values in found.items():
            totals[name] += values * (count if objective.weighted else 1)
        batches, seen = batches + 1, seen + count
    per_row = torch.cat(rows, dim=1).tolist()
    means = {"loss": (totals.pop("loss") / seen).tolist()}
    weights = seen if objective.weighted else batches
    means |= {name: (values / weights).tolist() for name, values in totals.items()}
    for index, cell in enumerate(cells):
        known = not all(math.isnan(weight) for _, weight in per_row[index])
        cell.held_out_rows = [(loss, int(weight)) for loss, weight in per_row[index]] if known else []
        cell.scores = {f"eval_{name}": values[index] for name, values in means.items()}


@torch.no_grad()
def _evaluate_batch(
    passes: Passes, cells: list[CellState], objective: PackObjective, batch: Batch
) -> dict[str, torch.Tensor]:
    parts = []

    def run(first: int, last: int) -> None:
        part, own = passes.select(batch, first, last), cells[first:last]
        scores = passes.score(part, objective.mean_logits)
        losses, metrics = objective.measure(scores, part, own)
        losses = losses / objective.divisors([part], len(own)).to(losses.device)
        parts.append({"loss": losses, "rows": objective.measure_rows(scores, part, own), **metrics})

    passes.run(len(cells), run)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
