"""Keys that have no effect because of the value of another key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from runner.config import path_rules
from runner.config.origins import Origins
from runner.config.settings import DataSettings
from runner.core.errors import Issue

_SIMILARITY = DataSettings.near_similarity
_ADAM = ("adam", "lion")  # families of optimisers that have betas


def _needs(names: str, needed: str, default: Any, fits: Callable[[str], bool], hint: str) -> list[_Need]:
    return [(name, needed, default, fits, hint) for name in names.split()]


# The key, the one that it needs with the library's default, what that must be, and what to do.
_Need = tuple[str, str, Any, Callable[[str], bool], str]
_NEEDS: list[_Need] = [
    *_needs(
        "eval_steps", "eval_strategy", "no", lambda value: value == "steps", "trainer.eval_strategy=steps"
    ),
    *_needs(
        "eval_delay eval_accumulation_steps",
        "eval_strategy",
        "no",
        lambda value: value != "no",
        "trainer.eval_strategy=steps",
    ),
    *_needs(
        "save_steps", "save_strategy", "steps", lambda value: value == "steps", "trainer.save_strategy=steps"
    ),
    *_needs(
        "adam_beta1 adam_beta2 adam_epsilon",
        "optim",
        "adamw_torch",
        lambda value: any(family in value for family in _ADAM),
        "optim=adamw_torch",
    ),
    *_needs(
        "optim_target_modules",
        "optim",
        "adamw_torch",
        lambda value: any(family in value for family in ("galore", "apollo")),
        "it is of galore and apollo optimizers; modules of an adapter: lora.target_modules",
    ),
    *_needs(
        "gradient_checkpointing_kwargs",
        "gradient_checkpointing",
        True,
        lambda value: value == "True",
        "trainer.gradient_checkpointing=true",
    ),
    *_needs(
        "activation_checkpointing_kwargs",
        "activation_checkpointing",
        False,
        lambda value: value == "True",
        "trainer.activation_checkpointing=true",
    ),
    *_needs(
        "liger_kernel_config",
        "use_liger_kernel",
        False,
        lambda value: value == "True",
        "trainer.use_liger_kernel=true",
    ),
    *_needs("packing_strategy", "packing", False, lambda value: value == "True", "trainer.packing=true"),
    *_needs(
        "ref_model_mixup_alpha ref_model_sync_steps",
        "sync_ref_model",
        False,
        lambda value: value == "True",
        "trainer.sync_ref_model=true",
    ),
    *_needs(
        "precompute_ref_batch_size",
        "precompute_ref_log_probs",
        False,
        lambda value: value == "True",
        "trainer.precompute_ref_log_probs=true",
    ),
    *_needs(
        "f_alpha_divergence_coef",
        "f_divergence_type",
        "reverse_kl",
        lambda value: value == "alpha_divergence",
        "trainer.f_divergence_type=alpha_divergence",
    ),
    *_needs(
        "discopop_tau",
        "loss_type",
        "sigmoid",
        lambda value: "discopop" in value,
        "trainer.loss_type=discopop",
    ),
    *_needs(
        "label_smoothing",
        "loss_type",
        "sigmoid",
        lambda value: any(loss in value for loss in ("robust", "exo_pair", "aot")),
        "trainer.loss_type=robust, exo_pair or aot",
    ),
    *_needs(
        "trackio_space_id trackio_bucket_id trackio_static_space_id",
        "report_to",
        "none",
        lambda value: "trackio" in value or value == "all",
        "trainer.report_to=trackio",
    ),
]

_LORA_NEEDS: list[_Need] = [
    *_needs(
        "loftq_config",
        "init_lora_weights",
        True,
        lambda value: value == "loftq",
        "lora=loftq quantization=nf4",
    ),
    *_needs("qalora_group_size", "use_qalora", False, lambda value: value == "True", "lora.use_qalora=true"),
]


def check_idle(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """An issue for each key that is given and cannot have an effect; settles those of a weaker source."""
    for section, needs in (("trainer", _NEEDS), ("lora", _LORA_NEEDS)):
        yield from _check_needs(section, values.get(section) or {}, needs, origins)
    data = values.get("data") or {}
    if data.get("near_similarity", _SIMILARITY) != _SIMILARITY and data.get("deduplicate") != "near":
        message = "data.near_similarity has no effect without data.deduplicate=near"
        yield Issue(origins.where("data.near_similarity"), message, "add data.deduplicate=near")
    speed = values.get("speed") or {}
    if speed.get("activation_memory_budget") is not None and speed.get("compile") is False:
        message = "speed.activation_memory_budget has no effect with speed.compile=false"
        yield Issue(origins.where("speed.activation_memory_budget"), message, "leave one of them out")
    model = values.get("model") or {}
    here = model.get("weights") == "random" or path_rules.exists(str(model.get("path") or ""))
    if model.get("revision") is not None and here:
        if max(map(origins.rank, ("model.path", "model.weights"))) > origins.rank("model.revision"):
            model["revision"] = None  # that of the hub's model, which a stronger source has replaced
        else:
            message = "model.revision names a state of a model of the hub, and the weights are not from there"
            yield Issue(origins.where("model.revision"), message, "leave model.revision out")
    for name, default in (("split", "train"), ("subset", None)):
        if data.get(name, default) != default and _all_local(data):
            message = f"data.{name} chooses a part of a hub data set, and the rows are files here"
            yield Issue(origins.where(f"data.{name}"), message, f"leave data.{name} out")


def _check_needs(
    section: str, given: dict[str, Any], needs: list[_Need], origins: Origins
) -> Iterator[Issue]:
    for name, needed, default, fits, hint in needs:
        value = given.get(needed, default)
        if given.get(name) in (None, {}) or fits(str(value)):
            continue
        if origins.rank(f"{section}.{needed}") > origins.rank(f"{section}.{name}"):
            del given[name]  # a stronger source turned off what a weaker one had set it for
        else:
            message = f"{section}.{name} has no effect with {section}.{needed}={value}"
            yield Issue(origins.where(f"{section}.{name}"), message, hint)


def _all_local(data: dict[str, Any]) -> bool:
    given = [data.get("path"), data.get("eval_path")]
    sources = [
        source for value in given if value for source in (value if isinstance(value, list) else [value])
    ]
    paths = [str(source.get("path") if isinstance(source, dict) else source) for source in sources]
    return all(path.startswith("embedded:") or path_rules.exists(path) for path in paths)
