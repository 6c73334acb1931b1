"""The adapters of a pack: drawn by PEFT one after the other, trained as rows of one tensor, saved by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file

from runner.adapter import add_adapter
from runner.dropout import DropoutStream
from runner.packed.layers import PackedLinear, PackState

PREFIX = "base_model.model."  # of tensor names in PEFT's files


@dataclass
class _Placed:
    """A layer of the pack and where its two tensors stand in a row of all trained values."""

    name: str
    layer: PackedLinear
    offsets: tuple[int, int]


class PackedAdapters:
    """LoRA adapters on one base: ``model`` is the PEFT model whose LoRA layers are replaced by packed ones.

    After ``flatten`` all values lie in ``values`` [adapters, values], one row an adapter, and the layers' tensors are
    views of it: an optimizer that knows only ``rows``, one parameter an adapter, trains them all.
    """

    def __init__(
        self, model: PeftModel, configs: list[Any], state: PackState, layers: dict[str, PackedLinear]
    ) -> None:
        self.model, self.configs, self.state = model, configs, state
        self.stream: DropoutStream | None = None
        self._layers = layers
        self.values = torch.empty(0)
        self.gradients = torch.empty(0)
        self.rows: list[torch.nn.Parameter] = []
        self._placed: list[_Placed] = []

    @property
    def tensors(self) -> list[torch.nn.Parameter]:
        """The parameters that the forward pass reads, in a fixed order."""
        return [tensor for layer in self._layers.values() for tensor in (layer.lora_A, layer.lora_B)]

    @property
    def rank(self) -> int:
        """What smaller ranks are filled up to."""
        return self.tensors[0].shape[1]

    def sizes(self) -> list[int]:
        """Values of each adapter, without what fills up its rank."""
        layers = self._layers.values()
        one = sum(layer.lora_A.shape[2] + layer.lora_B.shape[1] for layer in layers)
        return [config.r * one for config in self.configs]

    def total_size(self) -> int:
        """Values of all adapters, filled up."""
        return sum(tensor.numel() for tensor in self.tensors)

    def not_finite(self) -> list[int]:
        """The adapters that have a value which is not finite."""
        return [index for index, row in enumerate(self.values) if not bool(torch.isfinite(row).all())]

    def flatten(self) -> None:
        """Move all values into one tensor, in the number format that the parameters have now."""
        first = self.tensors[0]
        size = sum(tensor[0].numel() for tensor in self.tensors)
        self.values = torch.empty(self.state.size, size, dtype=first.dtype, device=first.device)
        offset = 0
        for name, layer in self._layers.items():
            offsets = (offset, offset + layer.lora_A[0].numel())
            self._placed.append(_Placed(name, layer, offsets))
            offset = offsets[1] + layer.lora_B[0].numel()
        for placed in self._placed:
            for tensor, view in zip(self._parameters(placed), self._views(self.values, placed), strict=True):
                view.copy_(tensor.data)
        self.rows = [torch.nn.Parameter(row) for row in self.values]
        self._bind()

    def add_gradients(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """Add the gradients of ``tensors`` to those of the rows."""
        into = [view for placed in self._placed for view in self._views(self.gradients, placed)]
        torch._foreach_add_(into, list(gradients))

    def keep(self, chosen: list[int]) -> None:
        """Give up all adapters but these; their memory is free afterwards."""
        self.values = self.values[chosen]
        self.rows = [self.rows[index] for index in chosen]
        self.configs = [self.configs[index] for index in chosen]
        self.state.keep(chosen)
        if self.stream is not None:
            self.stream.keep(chosen)
        for row, values in zip(self.rows, self.values, strict=True):
            row.data = values
        self._bind()

    def state_dict(self, index: int) -> dict[str, torch.Tensor]:
        """One adapter's tensors as PEFT names and shapes them, on the CPU."""
        rank = self.configs[index].r
        found = {}
        for name, layer in self._layers.items():
            found[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.data[index, :rank].cpu().contiguous()
            found[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.data[index, :, :rank].cpu().contiguous()
        return found

    def load(self, index: int, tensors: dict[str, torch.Tensor]) -> None:
        """Put one adapter's tensors, named as by ``state_dict``, into the pack."""
        for name, layer in self._layers.items():
            _fill(layer.lora_A.data[index], tensors[f"{PREFIX}{name}.lora_A.weight"])
            _fill(layer.lora_B.data[index], tensors[f"{PREFIX}{name}.lora_B.weight"])

    def save(self, index: int, folder: Path) -> None:
        """Write one adapter as a PEFT folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(index), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = self.configs[index]
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def _bind(self) -> None:
        """Point the layers' tensors and the rows' gradients at the shared ones."""
        self.gradients = torch.zeros_like(self.values)
        for row, gradient in zip(self.rows, self.gradients, strict=True):
            row.grad = gradient
        for placed in self._placed:
            for tensor, view in zip(self._parameters(placed), self._views(self.values, placed), strict=True):
                tensor.data = view

    @staticmethod
    def _parameters(placed: _Placed) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        return placed.layer.lora_A, placed.layer.lora_B

    def _views(self, values: torch.Tensor, placed: _Placed) -> list[torch.Tensor]:
        shapes = [tensor.shape[1:] for tensor in self._parameters(placed)]
        return [
            values[:, offset : offset + shape.numel()].unflatten(1, shape)
            for offset, shape in zip(placed.offsets, shapes, strict=True)
        ]


def pack_adapters(
    model: Any, configs: list[Any], seeds: list[int], rank: int | None = None
) -> PackedAdapters:
    """Draw an adapter of each PEFT config from its seed, as a run of its own would, and pack them on the base.

    ``rank`` is what smaller ranks are filled up to, the largest one by default.
    """
    wrapped: Any = add_adapter(model, configs[0], seeds[0], None)
    drawn = [_take(wrapped, "default")]
    resolved = [wrapped.peft_config["default"]]
    for config, seed in zip(configs[1:], seeds[1:], strict=True):
        from transformers import set_seed

        set_seed(seed)
        wrapped.add_adapter("next", config)
        drawn.append(_take(wrapped, "next"))
        resolved.append(wrapped.peft_config["next"])
        wrapped.delete_adapter("next")
    rank = rank or max(config.r for config in resolved)
    scaling = [layer_scaling(config) for config in resolved]
    layers = {
        name: module
        for name, module in wrapped.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    first: Any = next(iter(layers.values()))
    weight = first.lora_A["default"].weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    packed = PackedAdapters(wrapped, resolved, PackState(scaling, weight.device, dtype), {})
    rates = [float(config.lora_dropout) for config in resolved]
    if any(rates):
        packed.stream = DropoutStream(weight.device)
        packed.stream.start(seeds, rates)
    for number, (name, layer) in enumerate(layers.items()):
        packed._layers[name] = _replace(wrapped.base_model.model, name, layer, number, drawn, rank, packed)
    return packed


def layer_scaling(config: Any) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv:2312.03732)."""
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


def _take(model: Any, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """An adapter's A and B of every layer, on the CPU."""
    return {
        path: (layer.lora_A[name].weight.detach().cpu(), layer.lora_B[name].weight.detach().cpu())
        for path, layer in model.base_model.model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _replace(
    model: Any, name: str, layer: Any, number: int, drawn: list[Any], rank: int, packed: PackedAdapters
) -> PackedLinear:
    weight = layer.lora_A["default"].weight
    stacks = []
    for which, shape in ((0, (rank, layer.in_features)), (1, (layer.out_features, rank))):
        stack = torch.zeros(len(drawn), *shape, dtype=weight.dtype, device=weight.device)
        for row, tensors in zip(stack, drawn, strict=True):
            _fill(row, tensors[name][which])
        stacks.append(stack)
    dropout = (packed.stream, number) if packed.stream else None
    linear = PackedLinear(layer.base_layer, *stacks, packed.state, dropout)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, linear)
    return linear


def _fill(into: torch.Tensor, values: torch.Tensor) -> None:
    into.zero_()
    into[tuple(slice(size) for size in values.shape)].copy_(values)
