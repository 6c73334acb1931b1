"""Turn the library sections of the config into the objects they name: PEFT, bitsandbytes and TRL configs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.library_fields import Field
from runner.config.objective import TaskType
from runner.config.settings import LoraExtras, RunConfig, TrainerExtras
from runner.config.targets import FP8, target_fields
from runner.core.errors import ConfigError, Issue
from runner.models.lora_targets import EVERY
from runner.models.model import Base, Precision
from runner.models.module_patterns import check_patterns, missing_names, module_hint

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import TrainingArguments

_OWN_TRAINER_KEYS = set(TrainerExtras.__dataclass_fields__)

# Optimisers of bitsandbytes need CUDA; elsewhere torch's of the same rule, without paging and 8-bit states.
_PLAIN_OPTIMIZERS = {"adamw": "adamw_torch", "rmsprop": "rmsprop"}

_HIGH_RATE = 0.5  # above it no optimizer that takes steps of about the learning rate trains anything


def quantization_config(
    config: RunConfig, precision: Precision, task_type: TaskType = "CAUSAL_LM"
) -> Any | None:
    """The transformers quantization config, by default with the run's compute dtype. Raises
    ``ConfigError``."""
    if not config.quantization:
        return None
    fields = dict(config.quantization)
    if task_type == "SEQ_CLS":
        skipped = "modules_to_not_convert" if fields["_target_"] == FP8 else "llm_int8_skip_modules"
        fields[skipped] = [*(fields.get(skipped) or ()), "score"]  # the new head is trained
    if fields.get("load_in_4bit"):
        fields.setdefault("bnb_4bit_compute_dtype", str(precision.dtype).removeprefix("torch."))
    return _build("quantization", fields)


def peft_config(config: RunConfig, task_type: TaskType, total_steps: int | None = None) -> PeftConfig | None:
    """The PEFT config, or None for full fine-tuning. Raises ``ConfigError``.

    ``target_modules: attention`` stands for the query and value projections under each architecture's own
    names. AdaLoRA's ``total_step`` follows the run when ``total_steps`` is given.
    """
    if not config.lora:
        return None
    own = LoraExtras.__dataclass_fields__
    fields = {"task_type": task_type} | {key: value for key, value in config.lora.items() if key not in own}
    if fields.get("target_modules") == "attention":
        fields["target_modules"] = (
            None  # PEFT's own table, by model type: q_proj and v_proj and their equivalents
        )
    if fields["_target_"] == "peft.AdaLoraConfig":
        steps = total_steps or 100
        fields.setdefault("total_step", steps)
        fields.setdefault("tinit", steps // 10)
        fields.setdefault("tfinal", steps // 5)
    every = fields.get("target_modules") == EVERY
    if every and any(fields.get(key) is not None for key in ("layers_to_transform", "layers_pattern")):
        fields["target_modules"] = [EVERY]  # PEFT takes these with a list, which all-linear will be
    found = _build("lora", fields)
    if every:
        found.target_modules = EVERY
    return found


def training_arguments(
    config: RunConfig, precision: Precision, folder: Path, has_cuda: bool
) -> tuple[TrainingArguments, list[str]]:
    """The arguments of the trainer and warnings about what was replaced. Raises ``ConfigError``."""
    notes: list[str] = []
    taken = target_fields("trainer", str(config.trainer["_target_"]))
    own = _OWN_TRAINER_KEYS - set(taken)
    fields = {key: value for key, value in config.trainer.items() if key not in own}
    for key, value in fields.items():
        types = taken[key].types if key in taken else frozenset()
        if isinstance(value, str) and types & {"list", "str"} == {"list"}:
            fields[key] = [value]
        elif type(value) is int and types & {"float", "int"} == {"float"}:
            fields[key] = float(value)  # torch wants both betas to be of one type
    optimizer = str(fields.get("optim", ""))
    if not has_cuda and _needs_cuda(optimizer):
        fields["optim"] = replacement = _plain_optimizer(optimizer)
        notes.append(f"trainer.optim={optimizer} needs CUDA; {replacement} is used instead")
    rate = fields.get("learning_rate")
    if isinstance(rate, float) and rate > _HIGH_RATE and not finds_its_rate(optimizer):
        notes.append(f"trainer.learning_rate={rate:g} is far above what trains a model (1e-6 to 1e-2)")
    fields |= {
        "output_dir": str(folder / "checkpoints"),
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": str(precision.autocast) == "torch.bfloat16",
        "fp16": str(precision.autocast) == "torch.float16",
        "use_cpu": not has_cuda,
        "disable_tqdm": True,
        "dataloader_pin_memory": has_cuda,
        "run_name": folder.name,
    }
    arguments = _build("trainer", fields)
    return arguments, notes


def finds_its_rate(optimizer: str) -> bool:
    """Whether an optimizer takes the learning rate as a factor of the one that it finds (1 by default)."""
    return any(name in optimizer.lower() for name in ("prodigy", "dadapt", "adafactor", "sgd"))


def check_of_quantised(config: RunConfig, base: Base, has_cuda: bool) -> None:
    """Refuse LoftQ and QALoRA where PEFT cannot run them."""
    quantised = getattr(base.config, "quantization_config", None) or {}
    if config.lora.get("use_qalora") and (
        not isinstance(quantised, dict) or quantised.get("quant_method") != "gptq"
    ):
        message = (
            "PEFT has QALoRA for a base of GPTQ's format alone, and this is none: it would change nothing"
        )
        raise ConfigError(Issue("lora.use_qalora", message, "leave it out"))
    if config.lora.get("init_lora_weights") == "loftq" and not (has_cuda and base.folder):
        lacks = "there is no CUDA device" if base.folder else "random weights have none"
        message = f"LoftQ is computed on CUDA from a checkpoint's weights, and {lacks}"
        raise ConfigError(Issue("lora.init_lora_weights", message, "lora=r16 quantization=nf4"))


def check_adapter(config: RunConfig, task_type: TaskType, base: Base, modules: dict[str, bool]) -> None:
    """Refuse names of modules that the model lacks.

    ``modules`` are the model's, each with whether LoRA has a form for it; PEFT passes over most names that it
    misses. Where only the model's own code knows them its ``config.json`` says what can be said.
    """
    if not modules:
        _check_tokens(config, task_type, base)
        return
    heads = {"score", "classifier"} if task_type == "SEQ_CLS" else set()
    issues = [
        *_missing_modules(config, heads, base, modules),
        *check_patterns("lora", config.lora, {*modules, *heads}),
    ]
    if issues:
        raise ConfigError(issues)


def _check_tokens(config: RunConfig, task_type: TaskType, base: Base) -> None:
    """Refuse tokens to train of an embedding that is tied to the head.

    PEFT puts them on both, and TRL's losses multiply with the head's own weight, past what is on it.
    """
    tokens = config.lora.get("trainable_token_indices")
    if not tokens or config.adapter or task_type == "SEQ_CLS" or base.folder is None:
        return
    # the file's own word: transformers' class says true where a model's says nothing
    facts = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    if facts.get("tie_word_embeddings"):
        raise ConfigError(head_issue("lora.trainable_token_indices"))


def head_issue(key: str) -> Issue:
    """The issue of a ``key`` that puts an adapter on the output head, past which TRL's losses multiply with
    the head's own weight; tokens of an embedding get there where that is tied to the head."""
    message = "an adapter on the output head would not be trained"
    if "token" in key:
        message += ", and the embedding is tied to the head"
    return Issue(key, message, "'lora.modules_to_save=[lm_head]' trains the whole head")


# The keys that list names of modules, and whether they mean linear ones only.
_NAMING = {"target_modules": True, "exclude_modules": True}


def _missing_modules(
    config: RunConfig, heads: set[str], base: Base, modules: dict[str, bool]
) -> Iterator[Issue]:
    for key, linear in _NAMING.items():
        names = [name for name in modules if modules[name] or not linear]
        missing = [name for name in missing_names(config.lora.get(key), names) if name not in heads]
        if missing:
            message = f"{type(base.config).__name__} has no modules {', '.join(map(repr, missing))}"
            every = ["all-linear"] if key == "target_modules" else []
            yield Issue(f"lora.{key}", message, module_hint(missing, names, every))
    layers = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    chosen = config.lora.get("layers_to_transform")
    chosen = chosen if isinstance(chosen, list) else [chosen] if chosen is not None else []
    if layers and (beyond := [number for number in chosen if not 0 <= number < layers]):
        message = f"{type(base.config).__name__} has no layer {beyond[0]}"
        yield Issue("lora.layers_to_transform", message, f"allowed: 0 to {layers - 1}")


def _needs_cuda(optimizer: str) -> bool:
    return optimizer.startswith("paged_") or optimizer.endswith(("8bit", "32bit"))


def _plain_optimizer(name: str) -> str:
    """Raises ``ConfigError`` where there is none: the steps of another rule want another learning rate."""
    if plain := _PLAIN_OPTIMIZERS.get(name.removeprefix("paged_").partition("_")[0]):
        return plain
    message = f"{name} needs CUDA, and torch has none of its kind"
    raise ConfigError(Issue("trainer.optim", message, "adamw_torch, with a learning rate of its own"))


def _build(section: str, fields: dict[str, Any]) -> Any:
    """Instantiate an allow-listed class; its own complaints become issues of that section."""
    package, _, name = str(fields["_target_"]).rpartition(".")
    kind = getattr(importlib.import_module(package), name)
    known = target_fields(section, str(fields["_target_"]))
    try:
        given = {key: value for key, value in fields.items() if not _is_empty(known.get(key), value)}
        fields = {key: _nested(known.get(key), value) for key, value in given.items()}
        return kind(**{key: value for key, value in fields.items() if key != "_target_"})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(Issue(section, f"{name}: {error}")) from error


def _is_empty(field: Field | None, value: Any) -> bool:
    """Whether nothing is said of a nested config, which then is the library's default."""
    return field is not None and field.nested is not None and value == {}


def _nested(field: Field | None, value: Any) -> Any:
    """The config object of a field that takes one, of the mapping that stands for it in YAML."""
    if field is None or field.nested is None or not isinstance(value, dict):
        return value
    module, name = field.nested  # of the library's own annotation
    return getattr(importlib.import_module(module), name)(**value)
