"""How many cells can share a pass: estimated as a plan estimates it, then tried on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from runner.core.environment import available_memory
from runner.packed.passes import Passes, run_in_chunks
from runner.plan.memory import Memory

# Of the free memory; the rest is for what the estimate, or the trial, leaves out.
_SHARE = 0.7
_SHARE_TRIED = 0.9


def estimate_cells_per_pass(
    memory: Callable[[int], Memory], model: Any, cells: int, limit: int | None
) -> tuple[int, int]:
    """Cells in one pass, at most ``limit``, and the bytes that the pack will take at its peak.

    ``memory`` says what a step of the pack takes with so many cells in a pass (``runner.plan.packs``). Base
    and adapters are on the device already, and beside them what is free.
    """
    there = ("base", "adapter", "context")
    room = _SHARE * free_bytes(model)

    def need(count: int) -> int:
        return sum(size for kind, size in memory(count).parts.items() if kind not in there)

    most = min(cells, limit or cells)
    fitting = [count for count in range(1, most + 1) if need(count) <= room]
    cells_per_pass = max(fitting, default=1)
    return cells_per_pass, memory(cells_per_pass).total


def probe_cells_per_pass(passes: Passes, cells: int, rows: int, longest: int) -> None:
    """Set ``passes.cells_per_pass`` to what the device really holds, tried with ``rows`` sequences a cell of
    ``longest`` tokens.

    Begins with the estimate, and takes more of the ``cells`` as long as memory is left.
    """

    def run(first: int, last: int) -> None:
        _forward_backward(passes, first, last, rows, longest)

    while True:
        tried = passes.cells_per_pass
        before = free_bytes(passes.adapters.model)
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


def free_bytes(model: Any) -> int:
    """Memory that the device of the model has left for activations."""
    where = next(model.parameters()).device
    if where.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(where)
    return free + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
