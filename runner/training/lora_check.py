"""What ``lora`` makes of the model, tried on one without weights: every config error, and what is adapted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.models.adapted import Adapted
from runner.models.adapter import try_adapter, try_saved
from runner.models.adapter_fit import on_empty
from runner.models.build import check_adapter, peft_config
from runner.models.empty_model import module_names
from runner.models.model import Base, Precision, device
from runner.training.argument_checks import check_optimizer


@dataclass(frozen=True)
class LoraCheck:
    """Why the loss cannot be made of the tokens' log-probabilities, what is adapted, and warnings.

    Each as far as it is known without weights.
    """

    unsupported_loss: str | None = None
    adapted: Adapted | None = None
    warnings: list[str] = field(default_factory=list)


def check_lora(
    config: RunConfig,
    objective: Objective,
    base: Base,
    arguments: Any,
    classes: list[str] | None,
    precision: Precision,
) -> LoraCheck:
    """Check ``lora`` and the optimizer's patterns against the model's modules. Raises ``ConfigError``."""
    from runner.speed.token_loss import unsupported_loss

    adapter = peft_config(config, objective.task_type)
    modules = module_names(base)
    if issues := list(check_optimizer(config, arguments, modules)):
        raise ConfigError(issues)
    check_adapter(config, objective.task_type, base, modules, device().type == "cuda")
    if not modules:
        return LoraCheck()
    quantized = bool(config.quantization) or getattr(base.config, "quantization_config", None) is not None
    if config.adapter:
        tried = [try_saved(base, found, classes) for found in on_empty(base, adapters(config))]
    elif adapter is None:
        return LoraCheck("every weight is trained, the head's too")
    elif adapter.is_prompt_learning:
        return LoraCheck("prompt learning has tokens of its own")
    else:
        tried = [try_adapter(base, adapter, classes, quantized)]
    for model, found in tried:
        issues += _head_issues(model)
        issues += found.issues() if config.lora.get("require_all") else ()
    if issues:
        raise ConfigError(issues)
    if not tried:
        return LoraCheck()
    model, found = tried[0]
    kept = found.unquantized(precision.dtype.itemsize) if quantized else None
    reason = unsupported_loss(model)
    if found.on_experts and reason is None:
        reason = "expert weights with adapters are put together anew in every pass"
    return LoraCheck(reason, found, [*found.warnings(), *filter(None, [kept])])


def _head_issues(model: Any) -> Iterator[Issue]:
    """TRL's losses multiply with the head's own weight, past what is on it, which would learn nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    head = model.get_output_embeddings()
    if isinstance(head, (BaseTunerLayer, TrainableTokensWrapper)):
        message = "an adapter on the output head would not be trained"
        if isinstance(head, TrainableTokensWrapper):
            message += ", and the embedding is tied to the head"
        hint = "'lora.modules_to_save=[lm_head]' trains the whole head"
        yield Issue("lora.target_modules", message, hint)
