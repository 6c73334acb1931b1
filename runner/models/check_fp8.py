"""What of ``quantization=fp8`` is checked before weights are loaded: the machine, and the model's layers."""

from __future__ import annotations

from typing import Any

from runner.config.settings import RunConfig
from runner.config.targets import FP8
from runner.core.errors import ConfigError, Issue
from runner.models.base import Base
from runner.models.empty_model import empty_model

_WHERE = "quantization=fp8"


def check_machine(config: RunConfig) -> None:
    """Refuse a base in e4m3 where the machine cannot multiply in it. Raises ``ConfigError``."""
    if config.quantization.get("_target_") != FP8:
        return
    from runner.models.fp8.support import unsupported

    if reason := unsupported():
        raise ConfigError(Issue(_WHERE, reason, "allowed here: quantization=nf4, int8 or none"))


def check_layers(config: RunConfig, base: Base, classes: list[str] | None) -> list[str]:
    """Check which layers of a model will be in e4m3; return a warning about those that cannot be.

    ``classes`` are the outputs of a head that the base does not have. Raises ``ConfigError`` where no layer
    can be, or where one that will be is to be trained as a whole.
    """
    if config.quantization.get("_target_") != FP8 or base.settings.trust_remote_code:
        return []
    from runner.models.fp8.quantizer import Fp8Config, linear_layers

    skipped = config.quantization.get("modules_to_not_convert")
    taken, left = linear_layers(empty_model(base, classes), Fp8Config(skipped))
    model = type(base.config).__name__
    if not taken:
        hint = "quantization=nf4, int8 or none"
        raise ConfigError(Issue(_WHERE, f"{model} has no linear layers that could be in e4m3", hint))
    whole = _named(config.lora.get("modules_to_save"))
    if trained := [name for name in taken if name.rpartition(".")[2] in whole]:
        message = f"lora.modules_to_save names {trained[0]}, which is quantised and cannot be trained"
        hint = "an adapter on it (lora.target_modules), or quantization.modules_to_not_convert"
        raise ConfigError(Issue(_WHERE, message, hint))
    if not left:
        return []
    named = f"{left[0]}{f' and {len(left) - 1} more' if left[1:] else ''}"
    every = len(taken) + len(left)
    return [f"fp8 takes {len(taken)} of {every} linear layers: sizes that are no multiples of 16: {named}"]


def _named(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
