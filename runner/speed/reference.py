"""The reference's pass of a training step, computed by the policy's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

_FIRST, _SECOND = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


class Reference:
    """The adapters of a policy, which stand for those of its reference while its pass is computed.

    Compiled once more without gradients and adapters, layers round in other places: in bfloat16 the first
    loss of DPO was 0.690 where it is log 2 = 0.693, and every reward as far off. The reference of a fresh
    adapter is the base, which the policy's code computes with a second matrix of zeros.
    """

    def __init__(self, model: Any) -> None:
        self._layers: list[Any] = [each for each in model.modules() if isinstance(each, LoraLayer)]
        self._policy = self._layers[0].active_adapters if self._layers else []
        self._zeros: dict[int, torch.Tensor] = {}
        found = {id(each) for layer in self._layers for each in _matrices(layer, self._policy)}
        trained = [each for each in model.parameters() if each.requires_grad]
        #: Whether adapters are all that the policy and its reference differ in.
        self.known = len(self._policy) == 1 and all(id(each) in found for each in trained)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy's adapters compute in this block what those do that are in use, or none."""
        before = [(layer, layer.disable_adapters, layer.active_adapters) for layer in self._layers]
        values = [
            (matrix, matrix.data, self._value(layer, matrix))
            for layer in self._layers
            for matrix in _matrices(layer, self._policy)
        ]
        flags = [(each, each.requires_grad) for layer in self._layers for each in layer.parameters()]
        for layer in self._layers:
            layer.set_adapter(self._policy)
            layer.enable_adapters(True)
        for matrix, _, value in values:
            matrix.data = value
        try:
            yield
        finally:
            for matrix, own, _ in values:
                matrix.data = own
            for layer, disabled, active in before:
                layer.set_adapter(active)
                layer.enable_adapters(not disabled)
            for each, flag in flags:
                each.requires_grad_(flag)

    def _value(self, layer: LoraLayer, matrix: torch.nn.Parameter) -> torch.Tensor:
        """What the reference has in the place of one of the policy's matrices."""
        if not layer.disable_adapters and layer.active_adapters != self._policy:
            own, other = _matrices(layer, self._policy), _matrices(layer, layer.active_adapters)
            return next(theirs.data for mine, theirs in zip(own, other, strict=True) if mine is matrix)
        if not layer.disable_adapters or any(
            matrix is each for each in _matrices(layer, self._policy, _FIRST)
        ):
            return matrix.data
        if id(matrix) not in self._zeros:
            self._zeros[id(matrix)] = torch.zeros_like(matrix.data)
        return self._zeros[id(matrix)]


def adapters_in_use(model: Any) -> tuple[str, ...]:
    """The names of those that a forward pass goes through, none where they are disabled."""
    layer = next((each for each in model.modules() if isinstance(each, BaseTunerLayer)), None)
    return () if layer is None or layer.disable_adapters else tuple(layer.active_adapters)


def _matrices(
    layer: LoraLayer, adapters: list[str], kinds: tuple[str, ...] = (*_FIRST, *_SECOND)
) -> list[torch.nn.Parameter]:
    """The matrices of some adapters in a layer."""
    held = (getattr(layer, kind) for kind in kinds)
    found = [parts[name] for parts in held for name in adapters if name in parts]
    return [each if isinstance(each, torch.nn.Parameter) else each.weight for each in found]
