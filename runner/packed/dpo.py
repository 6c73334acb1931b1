"""The objective of preference tuning: pairs of answers, compared with a reference that all cells share."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from runner.data.labels import IGNORE, Encoded
from runner.packed.batches import Collator
from runner.packed.cell import CellState
from runner.packed.passes import Batch, Passes, run_in_chunks
from runner.speed.token_loss import TokenLogprobs
from runner.training.dpo_loss import METRICS, FusedCausalLMOutput, as_output, pair_loss, pair_weights


class PackedDpo:
    """TRL's ``DPOTrainer``: each cell's loss is TRL's own, with the cell's arguments.

    The reference is the model that all cells start from: the base, or with ``adapter`` the base under the
    adapter that they continue. Its log-probabilities are computed once for each distinct sequence, before the
    first step. The losses are computed on the host: they are many small steps on few numbers.
    """

    sequences = 2
    metrics = METRICS
    mean_logits = True

    def __init__(self, pad_token_id: int, adapter: bool) -> None:
        self._adapter = adapter
        self._reference: dict[bytes, float] = {}
        self.collator: Collator = _WithReference(pad_token_id, self._reference)

    def start(self, passes: Passes, cells: list[CellState], batch_size: int) -> None:
        """Compute the reference's log-probabilities of all sequences."""
        lists = {id(rows): rows for cell in cells for rows in (cell.train, cell.held_out)}
        distinct = {_key(one): one for rows in lists.values() for row in rows for one in row.sequences}
        longest_first = sorted(distinct.items(), key=lambda item: -len(item[1].input_ids))

        def run(first: int, last: int) -> None:
            keys, rows = zip(*longest_first[first:last], strict=True)
            self._reference.update(zip(keys, self._log_probs(passes, rows), strict=True))

        size = passes.cells_per_pass * batch_size * self.sequences
        run_in_chunks(len(longest_first), size, run)

    @torch.no_grad()
    def _log_probs(self, passes: Passes, rows: Sequence[Encoded]) -> list[float]:
        """Summed log-probability of the labelled tokens of each row."""
        model = passes.adapters.model
        model.eval()
        passes.adapters.state.show(0, 1)  # they are all alike before the first step
        with nullcontext() if self._adapter else model.disable_adapter():
            scores = passes.score(self.collator.pad(rows), self.mean_logits)
        return scores.log_probs.sum(1).double().tolist()

    def divisors(self, batches: list[Batch], cells: int) -> torch.Tensor:
        """The number of batches: the loss is the mean of their means."""
        return torch.full((cells,), len(batches))

    def weights(self, batch: Batch, cells: int) -> dict[str, torch.Tensor]:
        """Pairs of each cell, and the labelled tokens of its chosen and rejected sequences."""
        tokens = (batch["labels"][:, 1:] != IGNORE).unflatten(0, (cells, 2, -1)).sum((2, 3))
        pairs = torch.full((cells,), len(batch["labels"]) // cells // 2)
        return pair_weights(pairs, *tokens.unbind(1))

    def measure(
        self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """TRL's loss and metrics of each cell's pairs."""
        output, rows = _on_host(scores), len(batch["labels"]) // len(cells)
        found = []
        for index, cell in enumerate(cells):
            found.append(_loss(cell, output, batch, slice(index * rows, (index + 1) * rows)))
        where = scores.log_probs.device
        table = torch.tensor([values for _, values in found], dtype=torch.float64).T.to(where)
        losses = torch.stack([loss for loss, _ in found]).to(where)
        return losses, dict(zip(self.metrics, table, strict=True))

    def measure_rows(self, scores: TokenLogprobs, batch: Batch, cells: list[CellState]) -> torch.Tensor:
        """The loss of each pair; every pair weighs the same."""
        output, pairs = _on_host(scores), len(batch["labels"]) // len(cells) // 2
        table = torch.ones(len(cells), pairs, 2, dtype=torch.float64)
        for index, cell in enumerate(cells):
            first = 2 * pairs * index
            for pair in range(pairs):
                rows = slice(first + pair, first + pairs + pair + 1, pairs)
                table[index, pair, 0] = _loss(cell, output, batch, rows)[0]
        return table.to(scores.log_probs.device)


class _WithReference(Collator):
    """Adds ``reference`` [rows]: the reference's summed log-probability of each row."""

    def __init__(self, pad_token_id: int, reference: dict[bytes, float]) -> None:
        super().__init__(pad_token_id)
        self._reference = reference

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        found = [self._reference[_key(row)] for row in rows]
        return self.pad(rows) | {"reference": torch.tensor(found, dtype=torch.float64)}


def _loss(
    cell: CellState, output: FusedCausalLMOutput, batch: Batch, rows: slice
) -> tuple[torch.Tensor, list[float]]:
    """Loss and metrics of some rows of a batch: chosen ones, then as many rejected ones."""
    own: Any = {name: values[rows] for name, values in output.items()}
    labels, log_probs = batch["labels"][rows], own["log_probs"]
    # before its first step a cell equals the reference; with log-probabilities of another batch layout,
    # rounding would make rewards differ from 0
    reference = batch["reference"][rows] if cell.moved else log_probs.detach().sum(1)
    chosen, rejected = reference.to(log_probs.dtype).chunk(2)
    return pair_loss(
        cell.arguments,
        FusedCausalLMOutput(**own),
        {
            "input_ids": batch["input_ids"][rows],
            "completion_mask": (labels != IGNORE).long(),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        },
    )


def _on_host(scores: TokenLogprobs) -> FusedCausalLMOutput:
    """The scores in two copies, of which that of the log-probabilities lets gradients through."""
    names = ("entropy", "mean_logits", "is_top1")
    output: Any = as_output(scores)
    log_probs = output.log_probs.cpu()
    others = torch.stack([output[name].detach().to(log_probs.dtype) for name in names]).cpu()
    entropy, mean_logits, is_top1 = others
    return FusedCausalLMOutput(
        log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1 > 0
    )


def _key(row: Encoded) -> bytes:
    """Stands for what the reference sees of a row: ids and labels."""
    return hashlib.blake2b(array("q", row.input_ids + row.labels).tobytes(), digest_size=16).digest()
