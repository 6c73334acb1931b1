"""The decoder of a model in a training step: from token ids to the hidden states that the loss looks at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from runner.models.keyed_dropout import KeyedDropout
from runner.speed.graphs import Graphs
from runner.speed.layers import FastLayers
from runner.speed.pieces import NO_CHECKPOINTS, NO_DROPOUT, Pieces, Without

Places = tuple[torch.Tensor, ...]


class FastDecoder:
    """A model's decoder with the pieces of ``speed`` that it can have.

    ``pieces`` are those; ``without`` is called with each that turns out to be impossible.
    ``fill`` says that batches with fewer rows than the largest so far are filled up, for one graph to serve
    them all; ``key`` stands for what else the model's forward pass depends on.
    """

    def __init__(
        self,
        model: Any,
        pieces: Pieces,
        without: Without = lambda piece, reason: None,
        fill: bool = True,
        key: Callable[[], Hashable] = lambda: None,
    ) -> None:
        if pieces.compile and any(isinstance(module, KeyedDropout) for module in model.modules()):
            pieces = pieces.without("compile", NO_DROPOUT)  # of a pack, another cell than the first has it
            without("compile", NO_DROPOUT)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder, self._model = base.base_model, model
        self._layers = FastLayers(model, pieces)
        self._without, self._fill, self._key = without, fill, key
        self._rows = 0
        self._limit = int(getattr(base.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        self._graphs: Graphs | None = None
        self._record = pieces.cuda_graphs
        if self._record and not self._layers.causal:
            self._give_up("the model's attention is not causal SDPA throughout")
        elif self._record and not pieces.compile and getattr(base, "is_gradient_checkpointing", False):
            self._give_up(NO_CHECKPOINTS)

    def __call__(
        self, input_ids: torch.Tensor, places: Places, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The last hidden states [places, width] of tokens of ``input_ids`` [rows, length], by row and
        position.

        Rows are padded on the right, with any token, so that compiled and recorded layers go without the
        ``attention_mask``; it is for the library's own.
        """
        if not (self._record and self._training()):
            return self._hidden(input_ids, attention_mask)[places]
        rows, length = input_ids.shape
        self._rows = max(self._rows, rows)
        wide = min(bucket(length), max(self._limit, length))
        filled = pad(input_ids, (0, wide - length, 0, self._rows - rows if self._fill else 0))
        self._graphs = self._graphs or Graphs(self._hidden, trained(self._model))
        try:
            graph = self._graphs.record(filled, self._key())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up(str(error).strip().partition("\n")[0])
            return self._hidden(input_ids, attention_mask)[places]
        return self._graphs.replay(graph, filled, places[0] * wide + places[1])

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """No graph is recorded or replayed in this block."""
        record, self._record = self._record, False
        try:
            yield
        finally:
            self._record = record

    def forget(self) -> None:
        """Drop what was recorded: the tensors of the model are others now, or memory is needed."""
        if self._graphs is not None:
            self._graphs.forget()

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        with self._layers.on(self._training()):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self._decoder(**inputs, use_cache=False).last_hidden_state

    def _training(self) -> bool:
        return torch.is_grad_enabled() and self._model.training

    def _give_up(self, reason: str) -> None:
        self._record = False
        self._without("cuda_graphs", reason)


def trained(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def bucket(length: int) -> int:
    """The length that rows are filled up to: eight steps from a power of two to the next, at least 16 tokens
    apart. So at most one in eight tokens is filling, above 128, and few lengths serve all batches."""
    step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step
