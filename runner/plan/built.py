"""The architecture of any model that transformers has a class for, built on torch's meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from runner.core.errors import ConfigError, Issue
from runner.models.adapter import not_made, without_loftq
from runner.models.lora_targets import fit_targets
from runner.plan.architecture import Architecture, Linear
from runner.plan.families import attends_to_all
from runner.speed.pieces import AFTER_HEAD

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def from_model(facts: Mapping[str, Any]) -> Architecture:
    """The architecture of a ``config.json``'s model, counted on one without weights; imports torch.

    Raises ``ConfigError`` where transformers has no class for it: remote code is not run for an estimate.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {key: value for key, value in facts.items() if not key.startswith("_")}
    kind = str(given.pop("model_type", ""))
    quantization = given.pop("quantization_config", None) or {}
    try:
        config = AutoConfig.for_model(kind, **given)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what an unknown or damaged config raises depends on what is wrong in it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"no class of transformers describes this model ({kind}): {reason}"
        raise ConfigError(
            Issue("model.path", message, "name a model that transformers has a class for")
        ) from error
    return of_model(model, config, dict(quantization), dict(facts))


def of_model(
    model: Any,
    config: Any,
    quantization: dict[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Architecture:
    """The architecture of a model, with or without weights."""
    from torch.nn import Embedding
    from torch.nn import Linear as TorchLinear
    from transformers.pytorch_utils import Conv1D

    text = config.get_text_config()
    head = model.get_output_embeddings()
    linears, tables, inside = [], {}, set()
    for path, module in model.named_modules():
        name = path.removesuffix(".base_layer")  # of an adapter's layer
        if isinstance(module, TorchLinear):
            linears.append(Linear(name, module.in_features, module.out_features, module.bias is not None))
        elif isinstance(module, Conv1D):  # GPT-2's linear layer, whose weight is [in, out]
            linears.append(Linear(name, module.nx, module.nf, bias=True))
        elif isinstance(module, Embedding):
            tables[name] = (module.num_embeddings, module.embedding_dim)
        else:
            continue
        inside.add(path)
    norms = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in inside and "lora_" not in name
    }
    heads = int(text.num_attention_heads)
    hidden = int(text.hidden_size)
    return Architecture(
        kind=str(config.model_type),
        hidden=hidden,
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(of_most_layers(text, "num_key_value_heads") or heads),
        head_dim=int(of_most_layers(text, "head_dim") or hidden // heads),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        vocabulary=int(text.vocab_size),
        positions=int(getattr(text, "max_position_embeddings", None) or 2**31),
        tied=head is not None and head.weight is model.get_input_embeddings().weight,
        linears=tuple(linears),
        embeddings=tables,
        norms=norms,
        head=next((name for name, module in model.named_modules() if module is head), ""),
        experts=any(getattr(text, key, None) for key in _EXPERTS),
        active=_active(text),
        causal=attends_to_all(text.to_dict()),
        after_head=tuple(key for key in AFTER_HEAD if getattr(text, key, None)),
        quantization=quantization or {},
        facts=facts or {},
        exact=False,
    )


def of_most_layers(text: Any, key: str) -> Any:
    """The value of a key of a transformers config, None where it has none; of layers that differ in it, as
    in Gemma 4, that of most."""
    try:
        return getattr(text, key, None)
    except RuntimeError:  # transformers names no value for the whole model then
        return Counter(getattr(layer, key, None) for layer in text.per_layer_config).most_common(1)[0][0]


def _active(text: Any) -> int:
    """The inner width of the experts that a token takes."""
    if not any(getattr(text, key, None) for key in _EXPERTS):
        return 0
    width = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", 0)
    return int(width) * int(getattr(text, "num_experts_per_tok", None) or 1)


Shapes = tuple[tuple[int, ...], ...]


class AdapterShapes(NamedTuple):
    """Shapes of the tensors that a PEFT config adds to a model without weights, copies of its modules, and
    trains of its own; and whether it is one of virtual tokens.

    ``ranks`` are those of LoRA by linear layer, ``rebuilt`` the numbers in weights to which each pass adds
    their update, as PEFT does with parameters.
    """

    added: Shapes
    copied: Shapes
    own: Shapes
    prompt: bool
    ranks: dict[str, int]
    rebuilt: int


def adapter_shapes(
    architecture: Architecture, lora: Mapping[str, Any], classes: int | None, quantized: bool = False
) -> AdapterShapes:
    """What a PEFT config makes of a model without weights, whose linear layers will be ``quantized``.

    Raises ``ConfigError``.
    """
    import copy

    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    given = {key: value for key, value in architecture.facts.items() if not key.startswith("_")}
    given.pop("quantization_config", None)
    config = AutoConfig.for_model(str(given.pop("model_type")), **given)
    kind: Any = AutoModelForCausalLM
    if classes:
        kind, config.num_labels = AutoModelForSequenceClassification, classes
    with torch.device("meta"):
        model = kind.from_config(config)
    own = {id(parameter) for parameter in model.parameters()}
    wanted = copy.deepcopy(fit_targets(peft_config(lora, classes), model, quantized))
    without_loftq(wanted)
    try:
        wrapped: Any = get_peft_model(model, wanted, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ConfigError(not_made(error, wanted, model)) from error
    found: dict[str, list[tuple[int, ...]]] = {"added": [], "copied": [], "own": []}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            which = "own" if id(parameter) in own else "copied" if "modules_to_save" in name else "added"
            found[which].append(tuple(parameter.shape))
    added, copied, kept = (tuple(found[which]) for which in ("added", "copied", "own"))
    ranks, rebuilt = _on_layers(wrapped)
    return AdapterShapes(added, copied, kept, bool(wanted.is_prompt_learning), ranks, rebuilt)


def _on_layers(wrapped: Any) -> tuple[dict[str, int], int]:
    """The ranks of the linear layers that have LoRA, and the numbers in parameters that have."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    ranks: dict[str, int] = {}
    rebuilt = 0
    for name, layer in wrapped.named_modules():
        if isinstance(layer, ParamWrapper):
            rebuilt += layer.get_param().numel()
        elif isinstance(layer, LoraLayer) and "default" in layer.r:
            ranks[name.removeprefix("base_model.model.")] = int(layer.r["default"])
    return ranks, rebuilt


def peft_config(lora: Mapping[str, Any], classes: int | None) -> Any:
    """The PEFT config of the ``lora`` section, without what only a run knows."""
    from runner.config.settings import RunConfig
    from runner.models.build import peft_config as of_config

    task = "SEQ_CLS" if classes else "CAUSAL_LM"
    found = of_config(RunConfig(recipe="plan", lora=dict(lora)), task)
    assert found is not None
    return found
