"""Forward passes of a pack: which cells a pass is for, how many share one, and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from runner.core import console
from runner.data.labels import IGNORE
from runner.packed.adapters import PackedAdapters
from runner.speed.decoder import FastDecoder
from runner.speed.flat import Flat, lay_out
from runner.speed.pieces import Pieces
from runner.speed.token_loss import TokenLogprobs, token_logprobs

# By name, on the host, from a collator: of each cell the same number of sequences, cell after cell.
Batch = dict[str, torch.Tensor]


class Passes:
    """Passes of the cells of a pack over their own rows of a batch.

    ``cells_per_pass`` cells share a pass. When the device runs out of memory it is halved, which changes no
    result. Training passes have the ``pieces`` of ``speed``; ``autocast`` is the trainer's.
    """

    def __init__(
        self,
        adapters: PackedAdapters,
        cells_per_pass: int,
        autocast: Callable[..., AbstractContextManager[None]],
        pieces: Pieces,
    ) -> None:
        self.adapters, self.cells_per_pass = adapters, cells_per_pass
        state = adapters.state
        self.decoder = FastDecoder(
            adapters.model, pieces, _without, fill=False, key=lambda: (state.first, state.last)
        )
        self.device = next(adapters.model.parameters()).device
        self._autocast = autocast

    def run(self, count: int, run: Callable[[int, int], None]) -> None:
        """Call ``run(first, last)`` for all ``count`` cells, in chunks that fit in memory."""
        self.cells_per_pass = run_in_chunks(count, self.cells_per_pass, run)

    def select(self, batch: Batch, first: int, last: int) -> Batch:
        """Make the cells from ``first`` to ``last`` the active ones; returns their rows of a batch of all."""
        rows = len(batch["input_ids"]) // self.adapters.state.size
        self.adapters.state.show(first, last)
        return {name: values[first * rows : last * rows] for name, values in batch.items()}

    def score(self, batch: Batch, mean_logits: bool = False) -> TokenLogprobs:
        """Log-probabilities of the labelled tokens of a batch, by the adapters of the active cells."""
        ids, labels = batch["input_ids"], batch["labels"]
        # found on the host: on the GPU, looking for labels would wait for all work before it
        places = (labels[:, 1:] != IGNORE).nonzero().T
        flat = self._flat(batch, places)
        ids, labels, places = self.to_device(ids), self.to_device(labels), self.to_device(places)
        with self._autocast():
            return token_logprobs(
                self.adapters.model, ids, labels, tuple(places), mean_logits, self.decoder, flat=flat
            )

    def _flat(self, batch: Batch, places: torch.Tensor) -> Flat | None:
        """The rows of each cell side by side, in a training step that may have them so."""
        if "lengths" not in batch or not (self.decoder.flat and self.adapters.model.training):
            return None
        ids, state = batch["input_ids"], self.adapters.state
        mask = torch.arange(ids.shape[1]) < batch["lengths"][:, None]
        found = lay_out(ids, mask, places, state.last - state.first)
        return found and Flat(*map(self.to_device, found))

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        """Those of the adapters' tensors, which stay as they are until the next pass."""
        tensors = self.adapters.tensors
        loss.backward()
        found: list[torch.Tensor] = []
        for tensor in tensors:
            assert tensor.grad is not None
            found.append(tensor.grad)
            tensor.grad = None
        return found

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Copy from the host, without waiting for the work that the GPU has still to do."""
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)


def _without(piece: str, reason: str) -> None:
    console.warn(f"speed.{piece} off: {reason}")


def run_in_chunks(count: int, size: int, run: Callable[[int, int], None]) -> int:
    """Call ``run(first, last)`` for chunks of ``count``, at most ``size`` long; returns the size that worked.

    A chunk for which the device runs out of memory is halved, and tried again. Raises torch's
    ``OutOfMemoryError`` when a chunk of one does not fit.
    """
    done = 0
    while done < count:
        last = min(done + size, count)
        try:
            run(done, last)
        except torch.OutOfMemoryError:
            if last - done == 1:
                raise
            size = math.ceil((last - done) / 2)
            torch.cuda.empty_cache()
            continue
        done = last
    return size
