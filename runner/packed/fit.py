"""Whether a model with its adapter has a packed form, found on one with weights or without."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from runner.models.lora_scale import lora_scale
from runner.speed.token_loss import unsupported_loss

_PLAIN = tuple(
    getattr(lora, name) for name in ("Linear", "Linear4bit", "Linear8bitLt") if hasattr(lora, name)
)
# What PEFT's layers of other classes are on.
_ODD = {"ParamWrapper": "expert weights", "Embedding": "embeddings"}


def cannot_pack(wrapped: Any, drops: bool, continued: bool = False) -> str | None:
    """Why a PEFT model cannot be one of a pack, None where it can.

    ``drops`` says whether modules drop at random in training, ``continued`` that the adapter is a saved one,
    which may have other ranks and scales for some layers.
    """
    layers = lora_layers(wrapped)
    odd = {type(layer).__name__ for layer in layers.values() if type(layer) not in _PLAIN}
    if odd:
        return f"adapters on {' and '.join(sorted(_ODD.get(name, name) for name in odd))} have no packed form"
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in wrapped.modules()):
        return "tokens or modules that are trained themselves have no packed form"
    if has_dropout(wrapped, drops):
        return "the base has dropout of its own, whose random numbers follow the shape of a batch"
    if continued and not _is_plain(wrapped, layers):
        return "the adapter is not plain LoRA with one rank and scaling for all layers"
    return unsupported_loss(wrapped)


def lora_layers(wrapped: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by name."""
    inner = wrapped.base_model.model
    return {name: layer for name, layer in inner.named_modules() if isinstance(layer, LoraLayer)}


def has_dropout(model: torch.nn.Module, modules: bool) -> bool:
    """Whether a model, but for its adapters, drops at random in training: by ``modules``, if they count, or
    rates of attention."""
    for name, module in model.named_modules():
        if ".lora_dropout" in name or isinstance(module, LoraLayer):
            continue
        if modules and isinstance(module, torch.nn.Dropout) and module.p > 0:
            return True
        rates = (value for name, value in vars(module).items() if "dropout" in name)
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
    return False


def _is_plain(wrapped: Any, layers: dict[str, Any]) -> bool:
    ((name, config),) = wrapped.peft_config.items()
    scale = lora_scale(config.lora_alpha, config.r, config.use_rslora)
    return not (config.lora_bias or config.bias != "none") and all(
        layer.r[name] == config.r and layer.scaling[name] == scale and name not in layer.lora_variant
        for layer in layers.values()
    )
