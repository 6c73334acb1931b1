"""What ``lora.target_modules=all-linear`` stands for, by what the model is.

PEFT's own reading adapts the linear layers of every tower, routers among them, and no expert weights where
these are one tensor of three dimensions. Where checkpoints of an architecture once had other names, it takes
``gate_proj`` of a shared expert for that of the routed ones, and leaves it as it is. So the layers are named
one by one: linear layers of the text path as modules, experts as parameters.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from runner.core.errors import ConfigError, Issue

EVERY = "all-linear"
HEAD = "output head"
PAST = "reads its weight past an adapter"
# A part of a module's name that says that it chooses experts, or weighs one.
_ROUTER = re.compile(r"(^|[._])(router|gate|wg)($|\.)")
# What PEFT has no form of for a parameter, which it adapts without knowing its input, and the value it needs.
_NOT_OF_EXPERTS = {
    "lora_dropout": 0,
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "velora_config": None,
    "kasa_config": None,
}


@dataclass(frozen=True)
class Weights:
    """The matrices of a model, by full name: the ``linear`` layers of its text path, its ``experts``
    (parameters of three dimensions), and what is ``left`` out of both, with the reason.

    The names of all that texts go through begin with ``text``.
    """

    text: str = ""
    linear: list[str] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def weights_of(model: Any) -> Weights:
    """The matrices of a transformers model, with or without weights, and which of them an adapter is for."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    text = _text_path(model, modules)
    found = Weights(text, experts=[name for name in _experts(modules) if name.startswith(text)])
    head = model.get_output_embeddings()
    counts = _expert_counts(modules, found.experts)
    for name, module in modules.items():
        if not isinstance(module, (Linear, Conv1D)):
            continue
        parent, _, short = name.rpartition(".")
        if module is head:
            found.left[name] = HEAD
        elif not name.startswith(found.text):
            found.left[name] = "not in the text path"
        elif _is_router(name, module, counts):
            found.left[name] = "router"
        elif _read_past(type(modules[parent]), short):
            found.left[name] = f"{type(modules[parent]).__name__} {PAST}"
        else:
            found.linear.append(name)
    return found


def fit_targets(config: Any, model: Any, quantized: bool) -> Any:
    """The PEFT ``config`` with the names that all-linear stands for on this model; others as they are.

    ``quantized`` says that linear layers will have no weights that another matrix can be added to. Raises
    ``ConfigError`` where PEFT can adapt experts only with other settings.
    """
    if getattr(config, "target_modules", None) != EVERY:
        return config
    config, weights = copy.deepcopy(config), weights_of(model)
    chosen = [name for name in weights.linear if _is_wanted(config, name)]
    experts = [name for name in weights.experts if _is_wanted(config, name)]
    if not chosen and not experts:
        message = "all-linear without lora.exclude_modules and in lora.layers_to_transform is no layer"
        raise ConfigError(Issue("lora.target_modules", message, "leave one of these out"))
    for key in ("layers_to_transform", "layers_pattern"):
        if getattr(config, key, None) is not None:
            setattr(config, key, None)  # the names are of these layers alone
    if str(config.peft_type.value) != "LORA":  # other kinds of adapters have no form for parameters
        config.target_modules = set(chosen)
        _fit_feedforward(config, model)
        return config
    if experts and (reasons := list(_obstacles(config))):
        message = f"PEFT adapts expert weights only with {', '.join(reasons)}"
        hint = "or name linear layers in lora.target_modules, and the experts stay as they are"
        raise ConfigError(Issue("lora.target_modules", message, hint))
    taken = {name for name in chosen if _is_renamed(config, model, name.rpartition(".")[2])}
    config.target_modules = {name for name in chosen if name not in taken}
    as_parameters = [] if quantized else [f"{name}.weight" for name in chosen if name in taken]
    parameters = [*(config.target_parameters or ()), *experts, *as_parameters]
    config.target_parameters = sorted({*parameters}) or None
    return config


def _fit_feedforward(config: Any, model: Any) -> None:
    """Name the ``feedforward_modules`` of IA3 as its ``target_modules`` are: PEFT makes an adapter where the
    first are not among the others, and then refuses to load it."""
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as USUAL

    ends = getattr(config, "feedforward_modules", ())
    if ends is None:
        ends = USUAL.get(model.config.model_type)
    if ends and not isinstance(ends, str):
        config.feedforward_modules = {name for name in config.target_modules if name.endswith(tuple(ends))}


def no_default(key: str, kind: str, feedforward: bool = False, ends: Collection[str] = ()) -> Issue:
    """The issue of a field of ``lora`` that PEFT knows a default of for some ``model_type``, but not for
    ``kind``; ``feedforward`` says that the adapter wants the last layer of each MLP named, too.

    ``ends`` are the last parts of the names of the model's modules.
    """
    last = "down_proj" if "down_proj" in ends else "LAST_OF_MLP"
    values = {"target_modules": EVERY, "feedforward_modules": f"[{last}]"}
    together = [key, "feedforward_modules"] if feedforward and key == "target_modules" else [key]
    hint = " ".join(f"lora.{name}={values.get(name, '...')}" for name in together)
    return Issue(f"lora.{key}", f"PEFT's table of {key} has no {kind}", hint)


def _text_path(model: Any, modules: Mapping[str, Any]) -> str:
    """The beginning of the names of the modules that texts go through."""
    decoder = model.get_decoder()
    name = next((name for name, module in modules.items() if module is decoder), "")
    return f"{name}." if name else ""


def _experts(modules: Mapping[str, Any]) -> Iterator[str]:
    """Full names of the parameters that hold the matrices of all experts of a layer, [experts, ., .]."""
    for name, module in modules.items():
        if type(module).__module__.startswith("torch.nn"):
            continue  # a convolution's
        for short, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and min(parameter.shape) > 1:
                yield f"{name}.{short}"


def _expert_counts(modules: Mapping[str, Any], experts: list[str]) -> dict[str, int]:
    """The blocks that have experts, by name, each with how many."""
    counts = {}
    for name in experts:
        owner, _, short = name.rpartition(".")
        counts[owner.rpartition(".")[0]] = len(getattr(modules[owner], short))
    for name, module in modules.items():
        if name.endswith(".experts") and hasattr(module, "__len__"):  # a list of modules
            counts[name.rpartition(".")[0]] = len(module)
    return counts


def _is_router(name: str, module: Any, counts: Mapping[str, int]) -> bool:
    """Whether a linear layer chooses among the experts beside it, or weighs one that is always taken."""
    outputs = getattr(module, "out_features", None)
    return any(
        name.startswith(f"{block}.") and outputs in (1, count) and _ROUTER.search(name.removeprefix(block))
        for block, count in counts.items()
    )


@cache  # reading a class's source takes 17 ms, and a model has hundreds of its layers
def _read_past(parent: type, name: str) -> bool:
    """Whether a module's code reads the weight of a layer of its own, past what is put around that layer.

    Mamba's fused kernels do so with ``out_proj``: an adapter there would get no gradient on CUDA.
    """
    try:
        source = inspect.getsource(parent)
    except (OSError, TypeError):
        return False
    return bool(re.search(rf"self\.{re.escape(name)}\.weight\b(?!\.(dtype|device|shape|size|ndim))", source))


def _is_renamed(config: Any, model: Any, short: str) -> bool:
    """Whether PEFT takes a module's name for that of a routed expert's part in older checkpoints."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    tried = copy.copy(config)
    tried.target_modules, tried.target_parameters = {short}, None
    tried.rank_pattern, tried.alpha_pattern = {}, {}
    try:
        convert_peft_config_for_transformers(tried, model, None)
    except ValueError:  # one of two names that belong together
        return True
    return tried.target_modules != {short}


def _is_wanted(config: Any, name: str) -> bool:
    """Whether ``exclude_modules`` and ``layers_to_transform`` leave a module or parameter in."""
    excluded = getattr(config, "exclude_modules", None)
    layers, patterns = (getattr(config, key, None) for key in ("layers_to_transform", "layers_pattern"))
    return not (excluded and _is_chosen(excluded, name)) and in_layers(name, layers, patterns)


def in_layers(name: str, layers: Any, patterns: Any) -> bool:
    """Whether a weight is in one of ``layers_to_transform``, by PEFT's own rule: their number follows one of
    the ``layers_pattern``, or any name; all are where none are given."""
    if layers is None or layers == []:
        return True
    numbers = [layers] if isinstance(layers, int) else list(layers)
    listed = [patterns] if isinstance(patterns, str) else list(patterns or [r"[^.]*"])
    found = next((m for p in listed if (m := re.match(rf".*\.{p}\.(\d+)\.", f".{name}"))), None)
    return found is not None and int(found[1]) in numbers


def is_meant(config: Any, name: str) -> bool:
    """Whether a PEFT config, as it was given, chooses a linear layer of the text path."""
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = getattr(config, "target_modules", None)
    if not targets or targets == EVERY:
        return targets == EVERY and _is_wanted(config, name)
    return bool(check_target_module_exists(config, name))  # with its layers_to_transform


def _is_chosen(chosen: Any, name: str) -> bool:
    """Whether ``exclude_modules`` has a matrix: by a pattern of its whole name, or by how that ends."""
    if isinstance(chosen, str):
        return re.fullmatch(chosen, name) is not None
    return any(f".{name}".endswith(f".{end}") for end in chosen)


def _obstacles(config: Any) -> Iterator[str]:
    for key, needed in _NOT_OF_EXPERTS.items():
        if getattr(config, key, needed) not in (needed, None):
            yield f"lora.{key}={'null' if needed is None else str(needed).lower()}"
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights not in ("gaussian", "eva"):
        yield "lora.init_lora_weights=true"
