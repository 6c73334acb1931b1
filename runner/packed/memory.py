"""How many cells can share a pass: what a plan calculates (``runner.plan.packs``), tried on the device."""

from __future__ import annotations

import math

import torch

from runner.packed.passes import Passes, run_in_chunks
from runner.training.load import free_bytes

_SHARE_TRIED = 0.9  # of the free memory; the rest is for what the trial leaves out


def probe_cells_per_pass(passes: Passes, cells: int, rows: int, longest: int) -> None:
    """Set ``passes.cells_per_pass`` to what the device really holds, tried with ``rows`` sequences a cell of
    ``longest`` tokens.

    Begins with the estimate, and takes more of the ``cells`` as long as memory is left.
    """

    def run(first: int, last: int) -> None:
        _forward_backward(passes, first, last, rows, longest)

    while True:
        tried = passes.cells_per_pass
        before = free_bytes()
        torch.cuda.reset_peak_memory_stats()
        begin = torch.cuda.memory_allocated()
        worked = run_in_chunks(tried, tried, run)
        needed = max(1, torch.cuda.max_memory_allocated() - begin)
        room = min(cells, math.floor(_SHARE_TRIED * before / needed * worked))
        passes.cells_per_pass = worked
        if worked < tried or room <= worked:
            return
        passes.cells_per_pass = room


def _forward_backward(passes: Passes, first: int, last: int, rows: int, longest: int) -> None:
    """A forward and a backward pass of which nothing is kept."""
    ids = torch.zeros((last - first) * rows, longest, dtype=torch.long)
    passes.adapters.state.show(first, last)
    passes.adapters.model.train()
    with passes.decoder.unrecorded():
        scores = passes.score({"input_ids": ids, "labels": ids})
        passes.gradients(scores.log_probs.sum())
