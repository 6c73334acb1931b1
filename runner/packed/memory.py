"""How many cells can share a pass: estimated from the model's shape, then tried on the device."""

from __future__ import annotations

import math
from typing import Any

import psutil
import torch

from runner.packed.adapters import PackedAdapters
from runner.packed.passes import Passes, run_in_chunks

# Of the free memory; the rest is for what the estimate, or the trial, leaves out.
_SHARE = 0.7
_SHARE_TRIED = 0.9


def estimate_cells_per_pass(
    adapters: PackedAdapters, rows: int, longest: int, checkpointing: bool, limit: int | None
) -> tuple[int, int]:
    """Cells in one pass, at most ``limit``, and the bytes that the pack will take at its peak.

    For batches of ``rows`` sequences a cell, all as long as the ``longest`` (tokens). Beside its values,
    which are there already, each adapter has gradients and two states of the optimizer.
    """
    model, cells = adapters.model, adapters.state.size
    need = max(1, bytes_per_token(model, checkpointing) * rows * longest)
    trained = 4 * adapters.total_size() * adapters.tensors[0].element_size()
    fits = max(1, math.floor((_SHARE * free_bytes(model) - trained) / need))
    cells_per_pass = min(cells, fits, limit or cells)
    return cells_per_pass, model.get_memory_footprint() + trained + cells_per_pass * need


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


def bytes_per_token(model: Any, checkpointing: bool) -> int:
    """Bytes that a token's activations take until the backward pass.

    Of each decoder layer, counted on transformers' Llama family: about 12 tensors of the hidden size (norms,
    residuals, projections, the inputs of the low-rank terms) and 5 of the MLP's; with gradient checkpointing
    the layer's input alone, and one whole layer while it is computed again.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = 4 if model.dtype == torch.float32 else 8 if model.dtype == torch.float64 else 2
    layer = (12 * hidden + 5 * inner) * width
    layers = config.num_hidden_layers
    return layers * hidden * width + layer if checkpointing else layers * layer


def free_bytes(model: Any) -> int:
    """Memory that the device of the model has left for activations."""
    where = next(model.parameters()).device
    if where.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(where)
    return free + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
