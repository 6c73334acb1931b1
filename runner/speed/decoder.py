"""The decoder of a model in a training step: from token ids to the hidden states that the loss looks at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from runner.models.keyed_dropout import dropout_stream
from runner.speed.flat import SIDE_BY_SIDE, Flat, all_ends, drawing, mixing
from runner.speed.graphs import Graphs
from runner.speed.layers import FastLayers, patched
from runner.speed.pieces import NO_CHECKPOINTS, Pieces, Without, bucket
from runner.speed.reference import Reference, adapters_in_use
from runner.speed.row_separation import carries_state

Places = tuple[torch.Tensor, ...]

# On a CPU, attention row by row is slower than of all rows: 2 rows with 4% of padding took 7 to 17% longer.
_ON_CPU = 0.8


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
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder, self._model = base.base_model, model
        self._config = base.config.get_text_config()
        self._dropout = dropout_stream(model)
        self._layers = FastLayers(model, pieces)
        self._reference = Reference(model) if pieces.compile else None
        self._without, self._fill, self._key = without, fill, key
        self._rows = 0
        self._limit = int(getattr(self._config, "max_position_embeddings", 0) or 2**31)
        self._graphs: dict[bool, Graphs] = {}
        self._record, self.flat = pieces.cuda_graphs, pieces.padding_free
        self._tested = False
        if reason := carries_state(base):
            self._give_up(reason)
        elif not self._layers.causal:
            self._give_up("the model's attention is not causal SDPA throughout")
        elif not pieces.compile and getattr(base, "is_gradient_checkpointing", False):
            self._give_up(NO_CHECKPOINTS)
        if getattr(model, "in_parts", False):
            self._can_lay_flat(1)  # now, when all processes that share its layers do

    def __call__(
        self,
        input_ids: torch.Tensor,
        places: Places,
        attention_mask: torch.Tensor | None = None,
        flat: Flat | None = None,
    ) -> torch.Tensor:
        """The last hidden states [places, width] of tokens of ``input_ids`` [rows, length], by row and
        position.

        Rows are padded on the right, with any token, so that compiled and recorded layers go without the
        ``attention_mask``; it is for the library's own. ``flat`` are the same rows side by side, which are
        taken where that is fewer tokens.
        """
        if not self._model.training:
            return self._hidden(input_ids, attention_mask)[places]
        self._rows = max(self._rows, len(input_ids))
        if flat is not None and self._is_less(flat, input_ids) and self._can_lay_flat(flat.lines):
            flat = self._filled_flat(flat) if self._record else flat
            inputs, chosen = flat[:4], flat.places
        elif self._record:
            inputs = (self._filled(input_ids),)
            chosen = places[0] * inputs[0].shape[1] + places[1]
        else:
            with self._as_policy():
                return self._hidden(input_ids, attention_mask)[places]
        return self._replayed(inputs, chosen) if self._record else self._chosen(inputs, chosen)

    def _replayed(self, inputs: tuple[torch.Tensor, ...], chosen: torch.Tensor) -> torch.Tensor:
        graphs = self._graphs_of(torch.is_grad_enabled())
        try:
            graph = graphs.record(inputs, (self._key(), adapters_in_use(self._model)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._record = False
            graphs.forget()  # not those of the policy, whose backward pass may be to come
            self._without("cuda_graphs", str(error).strip().partition("\n")[0])
            return self._chosen(inputs, chosen)
        return graphs.replay(graph, inputs, chosen)

    def _graphs_of(self, trains: bool) -> Graphs:
        """The graphs of the policy's passes, or of its reference's, which come between a forward pass of the
        policy and the backward pass: they may not share memory."""
        if trains not in self._graphs:
            parameters = trained(self._model) if trains else []
            self._graphs[trains] = Graphs(self._run, parameters, next(self._model.parameters()).device)
        return self._graphs[trains]

    def _chosen(self, inputs: tuple[torch.Tensor, ...], chosen: torch.Tensor) -> torch.Tensor:
        return self._run(*inputs).flatten(0, 1).index_select(0, chosen)

    def _run(self, input_ids: torch.Tensor, *flat: torch.Tensor) -> torch.Tensor:
        with self._as_policy():
            return self._flat_hidden(input_ids, *flat) if flat else self._hidden(input_ids)

    @contextmanager
    def _as_policy(self) -> Iterator[None]:
        """A pass without gradients has in this block the compiled code of one with them."""
        if torch.is_grad_enabled() or self._reference is None or not self._reference.known:
            yield
            return
        with self._reference.in_place(), self._layers.one_by_one():
            yield

    def _length(self, length: int) -> int:
        """The length that rows of this one are filled up to."""
        return min(bucket(length), max(self._limit, length)) if self._record else length

    def _is_less(self, flat: Flat, input_ids: torch.Tensor) -> bool:
        rows = self._rows if self._record and self._fill else len(input_ids)
        width = flat.lines * (bucket(flat.tokens) if self._record else flat.tokens)
        padded = rows * self._length(input_ids.shape[1])
        if not flat.input_ids.is_cuda:
            return width < _ON_CPU * padded
        # once compiled for rows side by side, layers need not be compiled for others
        return width < padded or (self._tested and width == padded)

    def _filled(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows, length = input_ids.shape
        missing = self._rows - rows if self._fill else 0
        return pad(input_ids, (0, self._length(length) - length, 0, missing))

    def _filled_flat(self, flat: Flat) -> Flat:
        """With a last row of what fills it up, and empty ones behind, as there are in the largest batch."""
        rows = flat.ends.shape[1]
        rows = max(rows, self._rows // flat.lines + 2) if self._fill else rows
        return flat.filled(bucket(flat.tokens), rows)

    def _can_lay_flat(self, lines: int) -> bool:
        """Whether rows may stand side by side, which is tried out once."""
        if self.flat and not self._tested:
            self._tested = True
            if reason := self._mixing(lines):
                self.flat = False
                self._without("padding_free", reason)
        return self.flat

    def _mixing(self, lines: int) -> str | None:
        device, vocabulary = next(self._model.parameters()).device, self._config.vocab_size

        def hidden(flat: Flat, numbered: bool = True) -> torch.Tensor:
            ids, positions, *others = (each.to(device) for each in flat[:4])
            return self._flat_hidden(ids, positions if numbered else None, *others)

        self._model.eval()
        random = torch.random.fork_rng([device] if device.type == "cuda" else [])
        try:
            if reason := mixing(hidden, vocabulary, lines):
                return reason
            self._model.train()
            with random, self._layers.not_compiled():
                return drawing(hidden, vocabulary, lines)
        except (RuntimeError, TypeError) as error:
            return str(error).strip().partition("\n")[0]
        finally:
            self._model.train()

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
        for graphs in self._graphs.values():
            graphs.forget()

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        with self._layers.on(self._model.training):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self._decoder(**inputs, use_cache=False).last_hidden_state

    def _flat_hidden(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        row_ids: torch.Tensor,
        ends: torch.Tensor,
    ) -> torch.Tensor:
        ends = all_ends(ends, input_ids.shape[1])
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "cu_seq_lens_q": ends}
        with ExitStack() as stack:
            if self._dropout is not None and position_ids is not None:
                places = row_ids, position_ids.int()
                self._layers.mark(input_ids.shape[1], places)
                stack.enter_context(patched(self._dropout, "places", places))
            stack.enter_context(self._layers.on(self._model.training, SIDE_BY_SIDE))
            return self._decoder(**inputs, use_cache=False).last_hidden_state

    def _give_up(self, reason: str) -> None:
        """Go without what needs a model of another kind."""
        for piece, has in (("cuda_graphs", self._record), ("padding_free", self.flat)):
            if has:
                self._without(piece, reason)
        self._record = self.flat = False


def trained(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
