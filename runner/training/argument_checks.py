"""Whether optimizer, schedule and adapter can be made, tried before anything is loaded.

transformers looks at most of these arguments when it makes the optimizer, which is after the model and the
rows have been read. That code itself is the check here, so that nothing of it is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.config.adapters import adapters
from runner.config.objective import Objective
from runner.config.settings import ParallelSettings, RunConfig
from runner.core.errors import ConfigError, Issue
from runner.models.adapted import Adapted
from runner.models.adapter import try_adapter, try_saved
from runner.models.adapter_fit import on_empty
from runner.models.build import check_adapter, check_of_quantised, head_issue, peft_config
from runner.models.empty_model import module_names
from runner.models.model import Base, Precision, device
from runner.models.module_patterns import check_patterns

_STEPS = 10


def check_optimizer(config: RunConfig, arguments: Any, modules: Mapping[str, bool]) -> Iterator[Issue]:
    """An issue for an optimizer or a schedule that cannot be made, and for each option that neither reads.

    ``modules`` are the names of the model's modules, each with whether it is linear.
    """
    import torch
    from transformers import Trainer, get_scheduler

    targets = {"optim_target_modules": config.trainer.get("optim_target_modules")}
    slow = list(check_patterns("trainer", targets, modules))
    if slow:
        yield from slow
        return
    shape = _stand_in(modules)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, shape)
        yield from _unread(arguments, shape, options)
    except Exception as error:  # of whatever kind the optimizer's library raises
        key = "trainer.optim_args" if config.trainer.get("optim_args") else "trainer.optim"
        yield Issue(key, f"trainer.optim={config.trainer.get('optim')}: {_first_line(error)}")
        return
    try:
        plain = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and "params" not in options
        weights = [torch.nn.Parameter(torch.zeros(2, 2))]
        optimizer = kind(weights, **options) if plain else torch.optim.SGD(weights, lr=0.1)
    except Exception as error:
        yield Issue("trainer.optim", f"trainer.optim={arguments.optim.value}: {_first_line(error)}")
        return
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=arguments.get_warmup_steps(_STEPS),
            num_training_steps=_STEPS,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except Exception as error:
        name = arguments.lr_scheduler_type.value
        # a mapping is merged into the one that is there
        alone = "trainer.lr_scheduler_kwargs=null " if arguments.lr_scheduler_kwargs else ""
        hint = f"its options: {alone}'trainer.lr_scheduler_kwargs={{NAME: VALUE}}'"
        yield Issue("trainer.lr_scheduler_kwargs", f"lr_scheduler_type={name}: {_first_line(error)}", hint)


def check_placed(
    arguments: Any, model_config: Any, has_cuda: bool, parallel: ParallelSettings
) -> Iterator[Issue]:
    """An issue for an argument that needs a model or a device that this is not.

    TRL's trainers raise these when they are made, of the loaded model.
    """
    weight = getattr(arguments, "router_aux_loss_coef", None)
    if weight and not hasattr(model_config.get_text_config(), "output_router_logits"):
        key, name = "trainer.router_aux_loss_coef", type(model_config).__name__
        yield Issue(key, f"{key}={weight:g}: {name} is no mixture of experts", "leave it out")
    if getattr(arguments, "activation_offloading", None) and not has_cuda:
        key = "trainer.activation_offloading"
        yield Issue(key, f"{key} moves activations from a CUDA device, and there is none", "leave it out")
    if parallel.zero_stage and arguments.fp16:
        message = f"precision fp16 with parallel={parallel.engine}: gradients in parts are not scaled"
        yield Issue("trainer.precision", message, "trainer.precision=fp32, or bf16 on a newer GPU")
    if parallel.zero_stage and arguments.weight_decay and model_config.get_text_config() is not model_config:
        # Gemma 3 after 3 steps at 1e-3 and a decay of 0.1: 1.5e-4 from the run of one process
        message = (
            f"with parallel={parallel.engine} weights decay that text never reaches, those of other towers"
        )
        yield Issue("trainer.weight_decay", message, "trainer.weight_decay=0, or parallel=ddp")


def _unread(arguments: Any, shape: Any, options: dict[str, Any]) -> Iterator[Issue]:
    """An issue for each of ``optim_args`` without which the optimizer would be the same."""
    given = [item.strip() for item in (arguments.optim_args or "").split(",") if item.strip()]
    for item in given:
        others = [other for other in given if other != item]
        if _shown(_options(arguments, ",".join(others), shape)) == _shown(options):
            message = f"trainer.optim={arguments.optim.value} does not read {item}"
            yield Issue("trainer.optim_args", message, "leave it out")


def _options(arguments: Any, given: str, shape: Any) -> dict[str, Any]:
    """The optimizer's options without some of ``optim_args``; empty where it cannot be made without."""
    from transformers import Trainer

    before, arguments.optim_args = arguments.optim_args, given or None
    try:
        return Trainer.get_optimizer_cls_and_kwargs(arguments, shape)[1]
    except Exception:
        return {}
    finally:
        arguments.optim_args = before


def _shown(options: dict[str, Any]) -> str:
    return repr({key: value for key, value in options.items() if key != "params"})


def _stand_in(modules: Mapping[str, bool]) -> Any:
    """A model of modules with these names, one weight each."""
    import torch

    top = torch.nn.Module()
    for name, linear in modules.items():
        inner = top
        *path, last = name.split(".")
        for part in path:
            inner = getattr(inner, part)
        inner.add_module(last, torch.nn.Linear(1, 1, bias=False) if linear else torch.nn.Module())
    return top


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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

    modules = module_names(base)
    if issues := list(check_optimizer(config, arguments, modules)):
        raise ConfigError(issues)
    check_of_quantised(config, base, device().type == "cuda")
    tried = try_lora(config, objective, base, modules, classes)
    if not tried:
        if not modules or config.adapter:
            return LoraCheck()
        of_prompt, of_all = "prompt learning has tokens of its own", "every weight is trained, the head's too"
        return LoraCheck(of_prompt if config.lora else of_all)
    model, found = tried[0]
    kept = found.unquantized(precision.dtype.itemsize) if _is_quantized(config, base) else None
    reason = unsupported_loss(model)
    if found.on_experts and reason is None:
        reason = "expert weights with adapters are put together anew in every pass"
    notes = filter(None, [kept, _unmoved_budget(config)])
    return LoraCheck(reason, found, [*found.warnings(), *notes])


def _unmoved_budget(config: RunConfig) -> str | None:
    """What is to be said of AdaLoRA, whose ranks PEFT leaves to a trainer that moves them in each step."""
    if config.lora.get("_target_") != "peft.AdaLoraConfig":
        return None
    return "every matrix keeps lora.init_r: TRL's trainers do not move AdaLoRA's budget to lora.target_r"


def try_lora(
    config: RunConfig,
    objective: Objective,
    base: Base,
    modules: dict[str, bool],
    classes: list[str] | None,
) -> list[tuple[Any, Adapted]]:
    """The base without weights with the adapter of a run, or each of those that it starts from, and what of
    the base that is on; none of full fine-tuning, of a prompt, and where it cannot be tried.

    Raises ``ConfigError`` for an adapter that does not fit the model or trains less than it should.
    """
    adapter = peft_config(config, objective.task_type)
    check_adapter(config, objective.task_type, base, modules)
    if issue := _unprovable(config, adapter, modules):
        raise ConfigError(issue)
    if not modules:
        return []
    if config.adapter:
        tried = [try_saved(base, found, classes) for found in on_empty(base, adapters(config))]
    elif adapter is None or adapter.is_prompt_learning:
        return []
    else:
        tried = [try_adapter(base, adapter, classes, _is_quantized(config, base))]
    issues: list[Issue] = []
    for model, found in tried:
        issues += [*_head_issues(model), *_decoder_issues(model)]
        issues += found.issues() if config.lora.get("require_all") else ()
    if issues:
        raise ConfigError(issues)
    return tried


def _is_quantized(config: RunConfig, base: Base) -> bool:
    return bool(config.quantization) or getattr(base.config, "quantization_config", None) is not None


def _unprovable(config: RunConfig, adapter: Any, modules: Mapping[str, bool]) -> Issue | None:
    """An issue for ``lora.require_all`` where no matrix has an adapter, or only its own code knows."""
    if not config.lora.get("require_all"):
        return None
    if adapter is not None and adapter.is_prompt_learning:
        message = f"{type(adapter).__name__} puts no adapter on any matrix"
        return Issue("lora.require_all", message, "lora=r16, or leave it out")
    if not modules:
        return Issue("lora.require_all", "only the model's own code says what it has", "leave it out")
    return None


def _decoder_issues(model: Any) -> Iterator[Issue]:
    """TRL's losses ask the decoder for hidden states, which Llama 4's text class names wrongly."""
    base = model.get_base_model()
    if base.base_model is base:
        message = f"{type(base).__name__} does not say which of its modules is the decoder, which TRL needs"
        yield Issue("model.path", message, "a model of another class")


def _head_issues(model: Any) -> Iterator[Issue]:
    """An issue for an adapter on the head, which would learn nothing."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    head = model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        yield head_issue("lora.trainable_token_indices")
    elif isinstance(head, TrainableTokensLayer):  # of a class of its own
        yield head_issue("lora.token_indices")
    elif isinstance(head, BaseTunerLayer):
        yield head_issue("lora.target_modules")
