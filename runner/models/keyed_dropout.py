"""LoRA dropout whose mask is a function of seed, step, layer, row, position and feature, and of nothing else.

So the mask of a row does not depend on what else is in its batch, on padding, or on a recomputed or resumed
step: an adapter that trains among others drops what it would drop alone. The mask is a hash of those numbers
(the finaliser of MurmurHash3, twice), not a state that is advanced.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_MIX = (-2048144789, -1028477387)  # 0x85ebca6b and 0xc2b2ae35, as 32-bit integers
_GOLDEN = -1640531527  # 0x9e3779b9
_NUMBERS = 2**18  # rows, positions or features whose hashes a stream keeps


def _fmix(h: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser on int32, shifts without sign."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * _MIX[0]
    h = (h ^ ((h >> 13) & 0x7FFFF)) * _MIX[1]
    return h ^ ((h >> 16) & 0xFFFF)


class DropoutStream:
    """What all dropout layers of a model share: of each row of a batch its seed, its number and its rate.

    ``start`` names the cells; ``at`` the step. ``keys`` [layers, cells] are filled in place, so that compiled
    and recorded layers see them. ``places`` are row and position of each token, 32-bit [cells, tokens], where
    the rows of each cell are side by side. ``batch`` are rows and length of the one under way, as the
    embeddings of a model that is watched last saw them: some layers have its tokens in one line (those of
    OPT's MLP). ``first`` [1] is the number of the first row of each batch, 0 where it is None: of a batch
    that several processes share each has a part.

    Hashes of numbers are read from tables, not made where they are used: Inductor of torch 2.11 takes the
    hash of an arange for the arithmetic of an index, which does not wrap around, once lengths vary (hidden
    states 55% off), and computes what is nested anew for every feature.
    """

    places: tuple[torch.Tensor, torch.Tensor] | None = None
    batch: tuple[int, int] = (0, 0)
    first: torch.Tensor | None = None

    def __init__(self, device: torch.device) -> None:
        self.seeds = torch.zeros(1, dtype=torch.int32, device=device)  # [cells]
        self.rates = torch.zeros(1, dtype=torch.float32, device=device)  # [cells]
        self.keys = torch.zeros(0, 1, dtype=torch.int32, device=device)
        self._layers = self._step = 0
        numbers = torch.arange(_NUMBERS, dtype=torch.int32, device=device)
        self._hashes, self._positions = _fmix(numbers), _fmix(numbers * _GOLDEN)
        self._numbers = numbers

    def watch(self, model: Any) -> None:
        """Follow the shapes of the batches of a model."""

        def look(module: torch.nn.Module, args: Any, embedded: torch.Tensor) -> None:
            self.batch = embedded.shape[0], embedded.shape[1]

        model.get_input_embeddings().register_forward_hook(look)

    def start(self, seeds: list[int], rates: list[float]) -> None:
        """Set seed and rate of every cell; a batch holds the same number of rows of each, cell after cell."""
        device = self.seeds.device
        self.seeds = torch.tensor([seed & 0x7FFFFFFF for seed in seeds], dtype=torch.int32, device=device)
        self.rates = torch.tensor(rates, dtype=torch.float32, device=device)
        self.at(self._step)

    def keep(self, chosen: list[int]) -> None:
        """Forget all cells but these."""
        self.seeds, self.rates = self.seeds[chosen], self.rates[chosen]
        self.at(self._step)

    def add_layer(self, number: int) -> None:
        """Have a key for the layer of this number too."""
        self._layers = max(self._layers, number + 1)
        self.at(self._step)

    def at(self, step: int, first: int | None = None) -> None:
        """Move to a step: forward passes so far, counted over the whole run.

        ``first`` is the number of its first row, once given always given.
        """
        self._step = step
        if first is not None:
            self.first = self.seeds.new_zeros(1) if self.first is None else self.first
            self.first.fill_(first)
        layers = torch.arange(self._layers, dtype=torch.int32, device=self.seeds.device)[:, None]
        keys = _fmix(_fmix(self.seeds + layers * _GOLDEN) ^ step)
        if keys.shape == self.keys.shape:
            self.keys.copy_(keys)
        else:
            self.keys = keys

    def features(self, size: int) -> torch.Tensor:
        """Hashes [size] of the numbers of features."""
        return _looked_up(self._hashes, size, 1)

    def tokens(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hashes of row [rows, 1] and position [length] of the tokens of a batch of ``rows`` a cell; where
        these are side by side [cells, 1, length] and [cells, length]. Raises ``RuntimeError`` for other
        tokens than all of those, in their order."""
        if self.places is not None:
            row, position = self.places
            if rows != 1 or length != row.shape[1]:
                raise RuntimeError("a layer with LoRA dropout has tokens in an order of its own")
            row = row if self.first is None else row + self.first
            return _fmix(row)[:, None], _fmix(position * _GOLDEN)
        hashes = _looked_up(self._hashes, rows, 1)
        if self.first is not None:
            hashes = self._hashes.index_select(0, self._numbers[:rows] + self.first)
        return hashes[:, None], _looked_up(self._positions, length, _GOLDEN)


def _looked_up(table: torch.Tensor, size: int, factor: int) -> torch.Tensor:
    if size > len(table):
        return _fmix(torch.arange(size, dtype=torch.int32, device=table.device) * factor)
    return table[:size]


class KeyedDropout(torch.nn.Module):
    """``nn.Dropout`` for inputs [rows, ..., features], with rate and seed by row from a stream."""

    def __init__(self, stream: DropoutStream, layer: int) -> None:
        super().__init__()
        self.stream = stream
        stream.add_layer(layer)
        # a tensor: compiled code is shared by all layers
        self.layer: torch.Tensor
        self.register_buffer("layer", torch.tensor([layer], device=stream.seeds.device), persistent=False)

    def forward(self, x: torch.Tensor, cells: slice = slice(None)) -> torch.Tensor:
        """Zero features and scale the rest by ``1 / (1 - rate)``, in training only."""
        if not self.training:
            return x
        shape = x.shape
        if x.dim() == 2 and math.prod(self.stream.batch) == shape[0]:
            x = x.view(*self.stream.batch, -1)
        x = x.view(x.shape[0], -1, shape[-1])  # experts see [tokens, features]
        rates = self.stream.rates[cells]
        rows = x.shape[0] // rates.shape[0]
        row, position = self.stream.tokens(rows, x.shape[-2])
        key = self.stream.keys.index_select(0, self.layer)[0, cells]
        key = _fmix(key[:, None, None] ^ row).flatten(0, 1)  # [rows of all cells, 1], or [cells, tokens]
        key = _fmix(key ^ position)[..., None]
        drawn = _fmix(key ^ self.stream.features(x.shape[-1]))  # uniform over int32
        rate = rates.repeat_interleave(rows, output_size=x.shape[0])[:, None, None]
        limit = (rate * 2.0**32 - 2.0**31).to(torch.int32)
        # scaled in float32, as nn.Dropout does: in bfloat16 1 / (1 - 0.05) is 0.2% too large
        return ((x * (1 / (1 - rate))).to(x.dtype) * (drawn >= limit)).view(shape)


def dropout_stream(model: Any) -> DropoutStream | None:
    """The stream of a model's keyed dropout, if it has any."""
    return next((module.stream for module in model.modules() if isinstance(module, KeyedDropout)), None)


def key_dropout(model: Any, seed: int) -> DropoutStream | None:
    """Replace the dropout of a model's LoRA layers by keyed ones; None when nothing is dropped.

    A model that has keyed ones already keeps them.
    """
    stream: DropoutStream | None = None
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
    for number, layer in enumerate(layers):
        for name, dropout in layer.lora_dropout.items():
            if isinstance(dropout, torch.nn.Dropout):
                if stream is None:
                    stream = DropoutStream(next(model.parameters()).device)
                    stream.watch(model)
                stream.start([seed], [dropout.p])
                layer.lora_dropout[name] = KeyedDropout(stream, number)
            elif isinstance(dropout, KeyedDropout):
                stream = dropout.stream
    return stream
