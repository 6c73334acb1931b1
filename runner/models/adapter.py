"""Put an adapter on the base, save it so that plain PEFT loads it, and start from an earlier one."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.adapters import Adapter
from runner.config.lora_rules import rewrites_base
from runner.core.atomic import json_text
from runner.core.errors import ConfigError, Issue
from runner.models.adapted import Adapted, adapted, parameters_of
from runner.models.adapter_fit import add_saved, check_loaded, refusing_misfits
from runner.models.biases import Biases, trains_biases
from runner.models.empty_model import empty_model
from runner.models.lora_targets import fit_targets, no_default, weights_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from runner.models.base import Base

_PAIR = re.compile(r"\.lora_(embedding_)?[AB]\b")  # the two matrices of an update, among an adapter's tensors
_NO_DEFAULT = re.compile(r"Please specify `(\w+)`")  # what PEFT says of a field that it has no default of


def changes_base(config: PeftConfig | None) -> bool:
    """Whether the adapter's initialisation rewrites the base weights, so that the two belong together."""
    return rewrites_base(getattr(config, "init_lora_weights", None))


def add_adapter(model: PreTrainedModel, config: Any, seed: int, base_folder: Path | None) -> PeftModel:
    """Wrap the base in a fresh adapter; ``seed`` is set first, so that it decides the initialisation.

    LoftQ compares the quantised weights with those in ``base_folder``.
    """
    from peft import get_peft_model, replace_lora_weights_loftq
    from transformers import set_seed

    config = fit_targets(config, model, is_quantized(model))
    set_seed(seed)
    loftq, biases = without_loftq(config), Biases(model)
    try:
        wrapped: Any = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(not_made(error, config, model)) from error
    if loftq:
        replace_lora_weights_loftq(wrapped, str(base_folder))
    return _prepared(wrapped, biases)


def without_loftq(config: Any) -> bool:
    """Take LoftQ, which reads the weights of a checkpoint, out of a PEFT ``config``; whether it was in it."""
    if getattr(config, "init_lora_weights", None) != "loftq":
        return False
    config.init_lora_weights, config.loftq_config = True, {}
    return True


def is_quantized(model: Any) -> bool:
    """Whether the linear layers of a loaded model are in a format of fewer bits."""
    return getattr(model, "hf_quantizer", None) is not None


def try_adapter(
    base: Base, config: Any, classes: list[str] | None = None, quantized: bool = False
) -> tuple[Any, Adapted]:
    """A fresh adapter of a PEFT ``config`` on the base without weights, and what of the base it is on.

    ``classes`` are those of a new head, ``quantized`` says that linear layers will be. Raises ``ConfigError``
    where PEFT cannot put one there.
    """
    from peft import get_peft_model

    model, given = empty_model(base, classes), config
    weights, before = weights_of(model), parameters_of(model)
    config = copy.deepcopy(fit_targets(config, model, quantized))
    without_loftq(config)
    try:
        wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as error:
        raise ConfigError(not_made(error, config, model)) from error
    if issue := _misshapen(wrapped, getattr(config, "init_lora_weights", None)):
        raise ConfigError(issue)
    return wrapped, adapted(wrapped, before, weights, given)


def _misshapen(wrapped: Any, init: Any) -> Issue | None:
    """An issue where an initialisation has made a matrix of another shape than the layer's rank wants: the
    singular vectors of its weight are fewer, or those of the transposed one, in GPT-2's layers."""
    from torch.nn import Linear

    for name, module in wrapped.named_modules() if isinstance(init, str) else ():
        if not isinstance(module, Linear) or ".lora_" not in name:
            continue
        wanted, made = (module.out_features, module.in_features), tuple(module.weight.shape)
        if made != wanted:
            layer = name.partition(".lora_")[0].removeprefix("base_model.model.")
            message = f"{init} makes a matrix of {made} for {layer}, where its rank wants {wanted}"
            smaller = f"lora.r={min(made)}, or " if min(made) < min(wanted) else ""
            return Issue("lora.init_lora_weights", message, f"{smaller}init_lora_weights=true")
    return None


def try_saved(base: Base, adapter: Adapter, classes: list[str] | None = None) -> tuple[Any, Adapted]:
    """A saved adapter on the base without weights, and what of the base it is on. Raises ``ConfigError``."""
    model = empty_model(base, classes)
    weights, before = weights_of(model), parameters_of(model)
    wrapped = add_saved(model, adapter)
    return wrapped, adapted(wrapped, before, weights)


def not_made(error: Exception, config: Any, model: Any) -> Issue:
    """The issue of an adapter of a PEFT ``config`` that PEFT refuses to put on a model."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if wanted := _NO_DEFAULT.match(reason):
        ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        feedforward = hasattr(config, "feedforward_modules")
        return no_default(wanted[1], model.config.model_type, feedforward, ends)
    hint = ""
    if "ParamWrapper" in reason:  # PEFT's form of an adapter on a parameter
        hint = "expert weights are adapted as parameters, which take no dropout, DoRA or bias of their own"
    return Issue("lora", f"PEFT cannot make this adapter: {reason}", hint)


def continue_adapter(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """Load an earlier adapter, to train it further. Raises ``ConfigError`` for one that does not fit."""
    from peft import PeftModel

    biases = Biases(model)
    with refusing_misfits(adapter):
        wrapped = PeftModel.from_pretrained(model, adapter.folder, is_trainable=True)
    check_loaded(wrapped, adapter, "default")
    return _prepared(wrapped, biases)


def _prepared(wrapped: PeftModel, biases: Biases) -> PeftModel:
    """The model of one adapter that is trained, which takes the biases that it trains with it when it is
    disabled."""
    for name, parameter in wrapped.named_parameters():
        if ".ranknum." in name:  # what AdaLoRA divides by: PEFT trains it over bfloat16, and does not save it
            parameter.requires_grad_(False)
    if trains_biases(wrapped.peft_config["default"]):
        biases.only_trained()
        biases.take("default")
        biases.follow(wrapped)
    return wrapped


def add_reference(model: Any) -> None:
    """Add a frozen copy of the adapter "default" under the name "ref", where there is none yet.

    Raises ``ConfigError`` for an adapter that PEFT cannot have twice, or that is more than can be copied.
    """
    if "ref" in model.peft_config:
        return
    own = model.peft_config["default"]
    config = copy.deepcopy(own)
    config.inference_mode = True
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # others look at the base, or change it
    if trains_biases(own):
        config.bias = "none"  # PEFT allows those of one adapter
    try:
        model.add_adapter("ref", config)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(_no_copy(own, (str(error).splitlines() or [type(error).__name__])[0])) from error
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "default" in parts:
            twin = tensors.get(".".join("ref" if part == "default" else part for part in parts))
            if twin is None:
                raise ConfigError(_no_copy(own, f"it would lack {name}"))
            twin.data = tensor.detach().clone()
            twin.requires_grad_(False)
        elif tensor.requires_grad and "ref" not in parts and not (trains_biases(own) and parts[-1] == "bias"):
            raise ConfigError(_no_copy(own, f"{name} is trained in the base"))
    if trains_biases(own):
        model.biases.keep("ref")


def _no_copy(config: PeftConfig, reason: str) -> Issue:
    kind = type(config).__name__.removesuffix("Config")
    hint = "merge it (recipe=merge), and train a new adapter on the result"
    return Issue("adapter", f"the reference cannot be a copy of this {kind} adapter: {reason}", hint)


def attach(model: PreTrainedModel, found: list[Adapter]) -> Any:
    """The base with all these adapters, none of them trained; the base itself when there are none.

    Raises ``ConfigError`` for adapters that do not fit.
    """
    from peft import PeftModel

    wrapped: Any = model
    biases = Biases(model)
    for adapter in found:
        with refusing_misfits(adapter):
            if wrapped is model:
                wrapped = PeftModel.from_pretrained(model, adapter.folder, adapter_name=adapter.name)
            else:
                wrapped.load_adapter(adapter.folder, adapter_name=adapter.name)
        check_loaded(wrapped, adapter, adapter.name)
        config = wrapped.peft_config[adapter.name]
        if trains_biases(config):
            biases.take(adapter.name)
            biases.put(None)
            config.bias = "none"  # PEFT, which leaves them where they are, allows those of one adapter
    if not found:
        return model
    biases.follow(wrapped)
    biases.put(found[0].name)
    return wrapped.eval()


@contextmanager
def using(model: Any, name: str | None) -> Iterator[None]:
    """Make one adapter of an ``attach``-ed model the active one, or with None the base alone."""
    if name is not None:
        model.set_adapter(name)
    alone = model.disable_adapter() if name is None and hasattr(model, "peft_config") else nullcontext()
    with alone:
        yield


class AdapterSaver:
    """Saves the trained adapter; remembers the initial one where its initialisation changed the base."""

    def __init__(self, model: PeftModel) -> None:
        from peft import get_peft_model_state_dict

        self._model = model
        self._initial: dict[str, Any] = {}
        if changes_base(model.peft_config["default"]):
            held = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
            self._initial = {name: each.cpu().clone() for name, each in held.items() if _PAIR.search(name)}

    @property
    def changes_base(self) -> bool:
        """Whether the initialisation changed the weights of the base."""
        return bool(self._initial)

    def save(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for the original base."""
        # the frozen copy that a preference loss compares with is left out
        self._model.save_pretrained(str(folder), selected_adapters=["default"])
        if self._initial:
            _convert(folder, self._initial)


def _convert(folder: Path, initial: dict[str, Any]) -> None:
    """Make an adapter of a base that its initialisation changed one of the original base.

    The base lost the product of the ``initial`` pair B0 A0, and the trained one has B A: on the original base
    the update is B A - B0 A0, the product of [B, -B0] and [A; A0], of twice the rank and the same scale. What
    else is trained, such as DoRA's magnitudes, is of the sum and stays as it is: PEFT's own conversion loses
    it.
    """
    import torch
    from safetensors.torch import load_file, save_file

    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name, first in initial.items():
        is_first = "_A" in _PAIR.search(name)[0]  # type: ignore[index]
        parts = [tensors[name], first if is_first else -first]
        tensors[name] = torch.cat(parts, dim=0 if is_first else 1)
    save_file(tensors, weights, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    factor = math.sqrt(2) if values["use_rslora"] else 2  # of an alpha that keeps the scale
    values |= {"init_lora_weights": True, "r": 2 * values["r"], "lora_alpha": factor * values["lora_alpha"]}
    values["rank_pattern"] = {key: 2 * rank for key, rank in values["rank_pattern"].items()}
    values["alpha_pattern"] = {key: factor * alpha for key, alpha in values["alpha_pattern"].items()}
    file.write_text(json_text(values, sort_keys=True), encoding="utf-8")


def set_base(folder: Path, base: str) -> None:
    """Record in ``adapter_config.json`` the base that a user can name, not a path inside a cache."""
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = base
    if isinstance(values.get("target_modules"), list):
        values["target_modules"] = sorted(values["target_modules"])  # PEFT writes a set, in any order
    file.write_text(json_text(values, sort_keys=True), encoding="utf-8")
