"""The decoder layers compiled one by one, for training steps: the GPU waits for Python otherwise."""

from __future__ import annotations

import shutil
from types import TracebackType
from typing import Any

import torch

# Between operations round to bfloat16, as the solo run does; compiled code would keep float32, and a cell
# be three times as far from its solo run as batch layouts are apart (tests/packed/test_packed_distance.py).
ROUNDED = {"emulate_precision_casts": True}


class CompiledLayers:
    """A context in which a model's decoder layers run compiled; elsewhere they run as they are.

    The layers share their code, so that one compilation serves all. Only on CUDA, and only where there is a C
    compiler, which Triton needs.
    """

    def __init__(self, model: Any) -> None:
        possible = next(model.parameters()).is_cuda and bool(shutil.which("gcc") or shutil.which("cc"))
        self.layers = _decoder_layers(model) if possible else []
        self._compiled: list[Any] = []

    def __enter__(self) -> None:
        if not self.layers:
            return
        if not self._compiled:
            for layer in self.layers:
                layer.compile(options=ROUNDED)
            self._compiled = [layer._compiled_call_impl for layer in self.layers]
        self._set(self._compiled)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._set([None] * len(self.layers))

    def _set(self, calls: list[Any]) -> None:
        for layer, call in zip(self.layers, calls, strict=True):
            layer._compiled_call_impl = call


def _decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The longest list of modules of one class."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    alike = [list(found) for found in lists if len({type(module) for module in found}) == 1]
    return max(alike, key=len, default=[])
