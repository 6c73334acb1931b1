"""The adapters of a pack: drawn by PEFT one after the other, or read from an earlier one; trained as rows of
one tensor, saved by name."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import set_seed
from trl.trainer.utils import disable_dropout_in_model

from runner.config.adapters import Adapter
from runner.models.adapter import add_adapter, continue_adapter, is_quantized
from runner.models.keyed_dropout import DropoutStream
from runner.models.lora_scale import lora_scale
from runner.models.lora_targets import fit_targets
from runner.packed import CannotPack
from runner.packed.fit import cannot_pack, lora_layers
from runner.packed.layers import PackedLinear, PackState

Pair = tuple[torch.Tensor, torch.Tensor]  # A and B
PREFIX = "base_model.model."  # of tensor names in PEFT's files


class PackedAdapters:
    """LoRA adapters on one base: ``model`` is the PEFT model whose LoRA layers are replaced by packed ones.

    After ``flatten`` all values lie in ``values`` [adapters, values], one row an adapter, and the layers'
    tensors are views of it: an optimizer that knows only ``rows``, one parameter an adapter, trains them all.
    """

    def __init__(
        self,
        model: PeftModel,
        configs: list[Any],
        state: PackState,
        layers: dict[str, PackedLinear],
        stream: DropoutStream | None,
    ) -> None:
        self.model, self.configs, self.state, self.stream = model, configs, state, stream
        self._layers, self._offsets = layers, []
        self.values = self.gradients = torch.empty(0)
        self.rows: list[torch.nn.Parameter] = []

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
        sizes = [tensor[0].numel() for tensor in self.tensors]
        self._offsets = [0, *itertools.accumulate(sizes)]
        self.values = torch.empty(self.state.size, sum(sizes), dtype=first.dtype, device=first.device)
        for tensor, view in zip(self.tensors, self._views(self.values), strict=True):
            view.copy_(tensor.data)
        self.rows = [torch.nn.Parameter(row) for row in self.values]
        self._bind()

    def add_gradients(self, gradients: Sequence[torch.Tensor], first: bool) -> None:
        """Add the gradients of ``tensors`` to those of the rows; of a step's ``first`` pass they are all."""
        flat = [gradient.flatten(1) for gradient in gradients]
        if first:
            torch.cat(flat, dim=1, out=self.gradients)
        else:
            self.gradients += torch.cat(flat, dim=1)

    def clip(self, limits: torch.Tensor) -> torch.Tensor:
        """Clip each adapter's gradient as ``clip_grad_norm_`` of torch does; returns the norms before."""
        norms = torch.linalg.vector_norm(self.gradients, dim=1, dtype=limits.dtype)
        self.gradients.mul_((limits / (norms + 1e-6)).clamp(max=1.0)[:, None].to(self.gradients.dtype))
        return norms

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
        for tensor, view in zip(self.tensors, self._views(self.values), strict=True):
            tensor.data = view

    def _views(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Parts of ``values`` in the shapes of ``tensors``."""
        return [
            values[:, start:end].unflatten(1, tensor.shape[1:])
            for tensor, (start, end) in zip(self.tensors, itertools.pairwise(self._offsets), strict=True)
        ]


def pack_adapters(
    model: Any,
    configs: list[Any],
    seeds: list[int],
    rank: int | None = None,
    start: Adapter | None = None,
    drops: bool = True,
) -> PackedAdapters:
    """Draw an adapter of each PEFT config from its seed, as a run of its own would; pack them on the base.

    ``rank`` is what smaller ranks are filled up to, the largest one by default. With ``start``, an
    earlier adapter, all begin as that one, whose config they keep. ``drops`` says whether inputs
    are dropped at the rates of the configs, or not at all. Raises ``CannotPack``.
    """
    if start is None:
        wrapped, layers, drawn, resolved = _draw(model, configs, seeds, drops)
    else:
        wrapped, layers, drawn, resolved = _continue(model, start, len(configs), drops)
    weight = next(iter(layers.values())).lora_A["default"].weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    state = PackState(
        [lora_scale(config.lora_alpha, config.r, config.use_rslora) for config in resolved],
        weight.device,
        dtype,
    )
    stream = None
    if drops and any(config.lora_dropout for config in resolved):
        stream = DropoutStream(weight.device)
        stream.watch(wrapped)
        stream.start(seeds, [float(config.lora_dropout) for config in resolved])
    largest = rank or max(config.r for config in resolved)
    packed: dict[str, PackedLinear] = {}
    for number, (name, layer) in enumerate(layers.items()):
        stacks = _stack(layer, [tensors[name] for tensors in drawn], largest)
        lora_A, lora_B = stacks
        packed[name] = PackedLinear(
            layer.base_layer, lora_A, lora_B, state, (stream, number) if stream else None
        )
        parent, _, attribute = name.rpartition(".")
        setattr(wrapped.base_model.model.get_submodule(parent), attribute, packed[name])
    return PackedAdapters(wrapped, resolved, state, packed, stream)


Drawn = tuple[Any, dict[str, Any], list[dict[str, Pair]], list[Any]]  # model, layers, values, configs


def _draw(model: Any, configs: list[Any], seeds: list[int], drops: bool) -> Drawn:
    configs = [fit_targets(config, model, is_quantized(model)) for config in configs]
    wrapped: Any = add_adapter(model, configs[0], seeds[0], None)
    _check(wrapped, drops)
    layers = lora_layers(wrapped)
    drawn, resolved = [_take(layers, "default")], [wrapped.peft_config["default"]]
    for config, seed in zip(configs[1:], seeds[1:], strict=True):
        set_seed(seed)
        wrapped.add_adapter("next", config)
        drawn.append(_take(layers, "next"))
        resolved.append(wrapped.peft_config["next"])
        wrapped.delete_adapter("next")
    return wrapped, layers, drawn, resolved


def _continue(model: Any, start: Adapter, count: int, drops: bool) -> Drawn:
    wrapped: Any = continue_adapter(model, start)
    _check(wrapped, drops, continued=True)
    layers, config = lora_layers(wrapped), wrapped.peft_config["default"]
    values = _take(layers, "default")
    return wrapped, layers, [values] * count, [copy.deepcopy(config) for _ in range(count)]


def _check(wrapped: Any, drops: bool, continued: bool = False) -> None:
    if reason := cannot_pack(wrapped, drops, continued):
        raise CannotPack(reason)


def as_trl_prepares(model: Any, arguments: Any) -> None:
    """What TRL's trainers do to a model with adapters before they train it."""
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if getattr(arguments, "disable_dropout", False):
        disable_dropout_in_model(model)


def _take(layers: dict[str, Any], name: str) -> dict[str, Pair]:
    """An adapter's A and B of every layer, on the CPU."""
    return {
        path: (layer.lora_A[name].weight.detach().cpu(), layer.lora_B[name].weight.detach().cpu())
        for path, layer in layers.items()
    }


def _stack(layer: Any, pairs: list[Pair], rank: int) -> list[torch.Tensor]:
    """The A of all adapters, and the B, on the layer's device and filled up to ``rank``."""
    like = layer.lora_A["default"].weight
    shapes = ((rank, layer.in_features), (layer.out_features, rank))
    stacks = [torch.zeros(len(pairs), *shape, dtype=like.dtype, device=like.device) for shape in shapes]
    for stack, which in zip(stacks, (0, 1), strict=True):
        for row, pair in zip(stack, pairs, strict=True):
            _fill(row, pair[which])
    return stacks


def _fill(into: torch.Tensor, values: torch.Tensor) -> None:
    into.zero_()
    into[tuple(slice(size) for size in values.shape)].copy_(values)
