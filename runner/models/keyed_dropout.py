"""LoRA dropout whose mask is a function of seed, step, layer, row, position and feature, and of nothing else.

So the mask of a row does not depend on what else is in its batch, on padding, or on a recomputed or resumed
step: an adapter that trains among others drops what it would drop alone. The mask is a hash of those numbers
(the finaliser of MurmurHash3, twice), not a state that is advanced.
"""

from __future__ import annotations

from typing import Any

import torch

_MIX = (-2048144789, -1028477387)  # 0x85ebca6b and 0xc2b2ae35, as 32-bit integers
_GOLDEN = -1640531527  # 0x9e3779b9


def _fmix(h: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser on int32, shifts without sign."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * _MIX[0]
    h = (h ^ ((h >> 13) & 0x7FFFF)) * _MIX[1]
    return h ^ ((h >> 16) & 0xFFFF)


class DropoutStream:
    """What all dropout layers of a model share: of each row of a batch its seed, its number and its rate.

    ``start`` names the cells; ``at`` the step. Tensors are filled in place, so that compiled layers see them.
    """

    def __init__(self, device: torch.device) -> None:
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.seeds = torch.zeros(1, dtype=torch.int32, device=device)  # [cells]
        self.rates = torch.zeros(1, dtype=torch.float32, device=device)  # [cells]

    def start(self, seeds: list[int], rates: list[float]) -> None:
        """Set seed and rate of every cell; a batch holds the same number of rows of each, cell after cell."""
        device = self.step.device
        self.seeds = torch.tensor([seed & 0x7FFFFFFF for seed in seeds], dtype=torch.int32, device=device)
        self.rates = torch.tensor(rates, dtype=torch.float32, device=device)

    def keep(self, chosen: list[int]) -> None:
        """Forget all cells but these."""
        self.seeds, self.rates = self.seeds[chosen], self.rates[chosen]

    def at(self, step: int) -> None:
        """Move to a step: forward passes so far, counted over the whole run."""
        self.step.fill_(step)


class KeyedDropout(torch.nn.Module):
    """``nn.Dropout`` for inputs [rows, ..., features], with rate and seed by row from a stream."""

    def __init__(self, stream: DropoutStream, layer: int) -> None:
        super().__init__()
        self.stream = stream
        # a tensor: compiled code is shared by all layers
        self.layer: torch.Tensor
        number = torch.tensor(layer, dtype=torch.int32, device=stream.step.device)
        self.register_buffer("layer", number * _GOLDEN, persistent=False)

    def forward(self, x: torch.Tensor, cells: slice = slice(None)) -> torch.Tensor:
        """Zero features and scale the rest by ``1 / (1 - rate)``, in training only."""
        if not self.training:
            return x
        shape = x.shape
        x = x.view(shape[0], -1, shape[-1])  # experts see [tokens, features]
        seeds, rates = self.stream.seeds[cells], self.stream.rates[cells]
        rows = x.shape[0] // seeds.shape[0]
        key = _fmix(_fmix(seeds + self.layer) ^ self.stream.step)  # [cells]
        row = torch.arange(rows, dtype=torch.int32, device=x.device)
        position = torch.arange(x.shape[-2], dtype=torch.int32, device=x.device)
        feature = torch.arange(x.shape[-1], dtype=torch.int32, device=x.device)
        key = _fmix(key[:, None] ^ _fmix(row)).reshape(-1, 1)  # [rows of all cells, 1]
        key = _fmix(key ^ _fmix(position * _GOLDEN))[..., None]
        drawn = _fmix(key ^ _fmix(feature))  # uniform over int32
        rate = rates.repeat_interleave(rows, output_size=x.shape[0])[:, None, None]
        limit = (rate * 2.0**32 - 2.0**31).to(torch.int32)
        return (x * (drawn >= limit) * (1 / (1 - rate)).to(x.dtype)).view(shape)


def key_dropout(model: Any, seed: int) -> DropoutStream | None:
    """Replace the dropout of a model's LoRA layers by keyed ones; None when nothing is dropped.

    A model that has keyed ones already keeps them.
    """
    stream: DropoutStream | None = None
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
    for number, layer in enumerate(layers):
        for name, dropout in layer.lora_dropout.items():
            if isinstance(dropout, torch.nn.Dropout):
                stream = stream or DropoutStream(next(model.parameters()).device)
                stream.start([seed], [dropout.p])
                layer.lora_dropout[name] = KeyedDropout(stream, number)
            elif isinstance(dropout, KeyedDropout):
                stream = dropout.stream
    return stream
