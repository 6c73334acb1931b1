"""Put an adapter into its base's weights, layer by layer, by PEFT's own arithmetic.

PEFT wraps a skeleton of the base whose tensors are stand-ins: one number each, seen in the full shape. Only
the layer that is being merged gets its weights: neither base nor merged model is ever whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

from runner.config.adapters import Adapter
from runner.core.errors import ConfigError, Issue
from runner.export.shards import Layout
from runner.models.adapter import changes_base
from runner.models.adapter_fit import add_saved, read_config, refusing_misfits
from runner.models.empty_model import empty_model
from runner.models.model import Base

Tensors = Mapping[str, torch.Tensor]


class Skeleton:
    """The base without weights under its adapters; merges tensor by tensor once weights are given.

    ``model`` is the PEFT model, ``config`` and ``architecture`` (its class) are the base's. Merged tensors
    are computed on ``device`` in float32, or in ``dtype`` if that is wider, and come out as ``dtype``. Raises
    ``ConfigError`` for adapters that do not fit the base or cannot become part of its weights.
    """

    def __init__(
        self,
        base: Base,
        adapters: list[Adapter],
        classes: list[str] | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype, self.classes, self._device = dtype, classes, device
        self._wide = torch.promote_types(dtype, torch.float32)
        empty = empty_model(base, classes)
        self.config, self.architecture = empty.config, type(empty).__name__
        self._stand_in(empty)
        state = empty.state_dict(keep_vars=True)
        self._slots = {name: _slot(empty, name) for name in state}
        self._names: dict[int, list[str]] = {}  # names of each stand-in, several where weights are tied
        for name, tensor in state.items():
            self._names.setdefault(id(tensor), []).append(name)
        self._state = state  # keeps the stand-ins, and so their ids, alive
        self.model = _wrap(empty, adapters)
        self._units = _outermost(self.model)
        if not self._units:
            _reject(adapters[0], "changes no weights, so that there is nothing to merge")
        for unit in self._units.values():
            if isinstance(unit, BaseTunerLayer) and type(unit).merge is BaseTunerLayer.merge:
                _reject(adapters[0], f"PEFT cannot merge a {type(unit).__name__}")

    def reads_from(self, tensors: Tensors) -> bool:
        """Whether ``tensors`` has, under the model's own names, all that a merge needs."""
        return all(
            any(alias in tensors for alias in self._names[id(self._state[name])])
            for name in self._slots
            if self._is_stand_in(name) and not isinstance(self._unit(name)[1], ModulesToSaveWrapper)
        )

    def layout(self, tensors: Tensors | None = None) -> Layout:
        """Type and shape of each tensor of the merged model.

        Tied weights stand there once, unless the adapter makes them differ; without ``tensors`` to find that
        out, they count as different.
        """
        written: list[str] = []
        for names in self._names.values():
            touched = any(self._unit(name)[1] or not self._is_stand_in(name) for name in names)
            apart = touched and len(names) > 1 and (tensors is None or not self._equal(tensors, names))
            written += names if apart else names[:1]
        kept = set(written)
        return {
            name: (self.dtype if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._state.items()
            if name in kept
        }

    def tied(self, layout: Layout) -> bool:
        """Whether all weights that are tied in the base are so in a merged model of this layout."""
        return all(sum(name in layout for name in names) == 1 for names in self._names.values())

    def merged(self, tensors: Tensors, names: Iterable[str]) -> Iterator[torch.Tensor]:
        """The merged model's tensors of these names, from the base's ``tensors``."""
        ready: dict[str, torch.Tensor] = {}
        for name in names:
            path, unit = self._unit(name)
            if unit is None:
                module, key = self._slots[name]
                tensor = self._read(tensors, name) if self._is_stand_in(name) else getattr(module, key)
            else:
                if name not in ready:
                    ready |= self._merge(path, unit, tensors)
                tensor = ready.pop(name)
            yield self._narrow(tensor)

    def _merge(self, path: str, unit: Any, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The tensors of one wrapped module after PEFT's merge; what it held before is put back."""
        filled = []
        if not isinstance(unit, ModulesToSaveWrapper):  # which brings all its weights itself
            for name, (module, key) in self._slots.items():
                if name.startswith(f"{path}."):
                    held = getattr(module, key)
                    weight = self._read(tensors, name) if self._is_stand_in(name) else held.detach().clone()
                    wide = weight.to(self._device)  # first, as fewer bytes travel than in the wider type
                    wide = wide.to(self._wide) if wide.is_floating_point() else wide
                    filled.append((module, key, held))
                    trained = isinstance(held, torch.nn.Parameter)
                    setattr(module, key, torch.nn.Parameter(wide, False) if trained else wide)
        for own in (*unit.parameters(), *unit.buffers()):
            own.data = own.data.to(self._device)  # PEFT has read the adapter's into main memory
        with torch.no_grad():
            # as PEFT does; adapters on several parameters of a module are around one another
            layer: Any = unit
            if hasattr(layer, "unload_and_optionally_merge_module"):
                whole = layer.unload_and_optionally_merge_module(True, True, None)
            else:
                layer.merge(safe_merge=True)
                whole = layer.get_base_layer()
        merged = {f"{path}.{key}": value for key, value in whole.state_dict().items()}
        for module in unit.modules():
            if isinstance(module, BaseTunerLayer):
                module.merged_adapters.clear()
        for module, key, held in filled:
            setattr(module, key, held)
        return merged

    def _read(self, tensors: Tensors, name: str) -> torch.Tensor:
        """A tensor of the base under any of its names."""
        return tensors[next(alias for alias in self._names[id(self._state[name])] if alias in tensors)]

    def _equal(self, tensors: Tensors, names: list[str]) -> bool:
        first, *others = self.merged(tensors, names)
        return all(torch.equal(first.cpu(), other.cpu()) for other in others)

    def _narrow(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _is_stand_in(self, name: str) -> bool:
        """False for a weight that came with the adapter (trained biases)."""
        module, key = self._slots[name]
        return getattr(module, key) is self._state[name]

    def _unit(self, name: str) -> tuple[str, Any]:
        """The wrapped module that a tensor belongs to, with its path; None for one that PEFT left alone."""
        path = name
        while path := path.rpartition(".")[0]:
            if path in self._units:
                return path, self._units[path]
        return "", None

    def _stand_in(self, model: Any) -> None:
        """Give every tensor one number instead of its memory; tied ones stay the same object."""
        made: dict[int, tuple[Any, Any]] = {}  # with the tensor itself, so that no id is used twice
        for module in model.modules():
            for slots in (module._parameters, module._buffers):
                for key, tensor in slots.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        dtype = self._wide if tensor.is_floating_point() else tensor.dtype
                        small = torch.zeros((), dtype=dtype, device=self._device).expand(tensor.shape)
                        trained = isinstance(tensor, torch.nn.Parameter)
                        made[id(tensor)] = tensor, torch.nn.Parameter(small, False) if trained else small
                    slots[key] = made[id(tensor)][1]


def _wrap(model: Any, adapters: list[Adapter]) -> Any:
    """The model under all adapters, the first one active."""
    peft: Any = None
    issues: list[Issue] = []
    for adapter in adapters:
        if reason := _obstacle(read_config(adapter)):
            issues.append(Issue(f"adapter={adapter.folder}", reason))
            continue
        try:
            peft = add_saved(model, adapter, peft)
            with refusing_misfits(adapter):
                peft.base_model._check_merge_allowed()
        except ConfigError as error:
            issues += error.issues
    if issues:
        raise ConfigError(issues)
    return peft


def _obstacle(shape: PeftConfig) -> str:
    """Why an adapter of this kind cannot become part of the base's weights; empty if it can."""
    kind = str(getattr(shape.peft_type, "value", shape.peft_type))
    if shape.is_prompt_learning or shape.is_adaption_prompt:
        return f"{kind} adds to what the model reads, not to its weights: it cannot be merged"
    if changes_base(shape):
        init = getattr(shape, "init_lora_weights", None)
        return f"was saved for the base that {init} had changed, which was not saved"
    for key, reason in (
        ("layer_replication", "repeats layers of the base"),
        ("alora_invocation_tokens", "acts only after certain tokens"),
    ):
        if getattr(shape, key, None):
            return f"{reason} ({key}), which cannot be expressed in weights of the base"
    return ""


def _outermost(model: Any) -> dict[str, Any]:
    """Modules that PEFT has wrapped, by their path in the base, without those inside another one."""
    found: dict[str, Any] = {}
    for path, module in model.base_model.model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not inside:
            found[path] = module
    return found


def _slot(model: Any, name: str) -> tuple[Any, str]:
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def _reject(adapter: Adapter, message: str) -> None:
    raise ConfigError(Issue(f"adapter={adapter.folder}", message))
