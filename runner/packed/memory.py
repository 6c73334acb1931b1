"""How many adapters can share a pass: an estimate of a pass's memory against what the device has free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import torch

from runner.packed.adapters import PackedAdapters

if TYPE_CHECKING:
    from runner.packed.trainer import PackedTrainer

# Of the free memory; the rest is for what the estimate, or the trial, leaves out.
_SHARE = 0.7
_SHARE_TRIED = 0.9


def estimate_cells_per_pass(
    adapters: PackedAdapters, rows: int, longest: int, checkpointing: bool, limit: int | None
) -> tuple[int, int]:
    """Adapters in one pass, at most ``limit``, and the bytes that the pack will take at its peak.

    For batches of ``rows`` as long as the ``longest`` row. Beside the values that are there already each
    adapter has gradients and two states of the optimizer.
    """
    model, cells = adapters.model, adapters.state.size
    need = max(1, bytes_per_token(model, checkpointing) * rows * longest)
    trained = 4 * adapters.total_size() * adapters.tensors[0].element_size()
    fits = max(1, math.floor((_SHARE * free_bytes(model) - trained) / need))
    cells_per_pass = min(cells, fits, limit or cells)
    return cells_per_pass, model.get_memory_footprint() + trained + cells_per_pass * need


def run_in_chunks(count: int, cells_per_pass: int, run: Callable[[int, int], None]) -> int:
    """Call ``run(first, last)`` for parts of ``count``, at most ``cells_per_pass`` long; returns what went
    well.

    A part for which the device runs out of memory is halved, and tried again.
    """
    done = 0
    while done < count:
        last = min(done + cells_per_pass, count)
        try:
            run(done, last)
        except torch.OutOfMemoryError:
            if last - done == 1:
                raise
            cells_per_pass = math.ceil((last - done) / 2)
            torch.cuda.empty_cache()
            continue
        done = last
    return cells_per_pass


def fitting(trainer: PackedTrainer, longest: int) -> int:
    """How many adapters of a pack really share a pass: tried on rows as long as the ``longest``.

    Begins with ``trainer.cells_per_pass``, the estimate, and takes more as long as memory is left.
    """
    cells_per_pass, most = trainer.cells_per_pass, len(trainer.members)
    while True:
        before = free_bytes(trainer.model)
        torch.cuda.reset_peak_memory_stats()
        begin = torch.cuda.memory_allocated()
        worked = run_in_chunks(
            cells_per_pass, cells_per_pass, lambda first, last: _try(trainer, first, last, longest)
        )
        needed = max(1, torch.cuda.max_memory_allocated() - begin)
        room = math.floor(_SHARE_TRIED * before / needed * worked)
        if worked < cells_per_pass or min(room, most) <= worked:
            return worked
        cells_per_pass = min(room, most)


def _try(trainer: PackedTrainer, first: int, last: int, longest: int) -> None:
    """A forward and a backward pass of which nothing is kept."""
    rows = (last - first) * trainer.args.per_device_train_batch_size * trainer.objective.sides
    ids = torch.zeros(rows, longest, dtype=torch.long)
    trainer.adapters.state.show(first, last)
    trainer.adapters.model.train()
    with trainer.compiled:
        scores = trainer.score({"input_ids": ids, "labels": ids})
        torch.autograd.grad(scores.log_probs.sum(), trainer.adapters.tensors)


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
