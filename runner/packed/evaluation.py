"""Held-out loss of all cells of a pack, row by row, and the means of the other metrics."""

from __future__ import annotations

import torch

from runner.packed.batches import distinct, evaluation_loader
from runner.packed.cell import CellState
from runner.packed.objective import PackObjective
from runner.packed.passes import Batch, Passes
from runner.training.means import WeightedMeans


def evaluate_cells(passes: Passes, cells: list[CellState], objective: PackObjective, batch_size: int) -> None:
    """Fill ``scores`` and ``held_out_rows`` of every cell.

    ``eval_loss`` is the mean over all rows, each with its weight (loss tokens; 1 for a preference pair); the
    other metrics are means over all batches, each with the weight of what it is a mean over.
    """
    lists, which = distinct([cell.held_out for cell in cells])
    rows: list[torch.Tensor] = []
    means = WeightedMeans()
    for batch in evaluation_loader(lists, which, batch_size, objective.sequences, objective.collator):
        found = _evaluate_batch(passes, cells, objective, batch)
        rows.append(found.pop("rows"))
        weights = objective.weights(batch, len(cells))
        means.add(found, {name: weight.to(rows[-1].device) for name, weight in weights.items()})
    per_row = torch.cat(rows, dim=1)
    losses = per_row[..., 0].sum(1) / per_row[..., 1].sum(1).clamp(min=1)
    scores = {name: values.tolist() for name, values in {"loss": losses, **means.means()}.items()}
    for index, cell in enumerate(cells):
        cell.held_out_rows = [(loss, int(weight)) for loss, weight in per_row[index].tolist()]
        cell.scores = {f"eval_{name}": values[index] for name, values in scores.items()}


@torch.no_grad()
def _evaluate_batch(
    passes: Passes, cells: list[CellState], objective: PackObjective, batch: Batch
) -> dict[str, torch.Tensor]:
    parts = []

    def run(first: int, last: int) -> None:
        part, own = passes.select(batch, first, last), cells[first:last]
        scores = passes.score(part, objective.mean_logits)
        _, metrics = objective.measure(scores, part, own)
        parts.append({"rows": objective.measure_rows(scores, part, own), **metrics})

    passes.run(len(cells), run)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
