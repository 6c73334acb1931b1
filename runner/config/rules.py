"""Rules about values: ranges, choices, keys decided elsewhere, and what must hold between keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from runner.config import path_rules
from runner.config.lora_rules import check_lora, check_patterns
from runner.config.origins import Origins
from runner.config.parallel_rules import check_parallel
from runner.config.recipes.loss_rules import check_losses, check_reference
from runner.config.targets import FP8
from runner.config.template_file import read_template
from runner.config.trust import check_trust
from runner.config.unused_keys import check_idle
from runner.core.errors import Issue, nearest
from runner.core.paths import ARCHITECTURES

Values = dict[str, Any]

# Adapters of PEFT that leave a base's weights to its layers, or read them as PEFT reads quantised ones.
_ON_FP8 = (
    *("LoraConfig", "AdaLoraConfig", "IA3Config"),
    *("PrefixTuningConfig", "PromptTuningConfig", "PromptEncoderConfig"),
)

# Two keys that say the same thing: of two sources the stronger wins, within one it is an error.
EXCLUSIVE = (("trainer.max_steps", "trainer.num_train_epochs"),)

# Choices that a library checks only when weights are loaded.
CHOICES = {
    "trainer.truncation_mode": ("keep_start",),
    "trainer.torch_compile_mode": (
        "default",
        "reduce-overhead",
        "max-autotune",
        "max-autotune-no-cudagraphs",
    ),
    "trainer.pad_to_multiple_of": ("auto",),
    "trainer.f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "quantization.bnb_4bit_quant_type": ("nf4", "fp4"),
    "quantization.bnb_4bit_compute_dtype": ("float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Range:
    """Allowed numbers; ``above`` and ``below`` leave a bound out, ``off`` is a value that means "not set"."""

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False
    off: float | None = None

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        high = self.high if self.high is not None else float("inf")
        low_enough = value < high if self.below or self.high is None else value <= high
        return value == self.off or (high_enough and low_enough)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        off = f", or {self.off} for none" if self.off is not None else ""
        high = f" and {'below' if self.below else 'at most'} {self.high}" if self.high is not None else ""
        return low + high + off


_COUNT, _POSITIVE, _NOT_NEGATIVE, _SHARE = Range(1), Range(0, above=True), Range(0), Range(0, 1)
RANGES = {
    "seed": Range(0, 2**32 - 1),
    "lora.r": Range(1, 2**16),  # of more there is no use, and memory ends when the model is loaded already
    "lora.lora_alpha": _POSITIVE,
    "lora.lora_dropout": Range(0, 0.999),
    "lora.num_virtual_tokens": _COUNT,
    "data.eval_split": Range(0, 0.999),
    "data.split_seed": Range(0, 2**32 - 1),
    "data.near_similarity": Range(0, 1, above=True),
    "data.max_rows": _COUNT,
    "data.eval_max_rows": _COUNT,
    "data.max_tokens": _COUNT,
    "data.min_chars": _NOT_NEGATIVE,
    "generation.samples": _NOT_NEGATIVE,
    "generation.rows": _NOT_NEGATIVE,
    "generation.batch_size": _COUNT,
    "generation.max_new_tokens": _COUNT,
    "merge.svd_rank": _COUNT,
    "merge.density": Range(0, 1, above=True),
    "merge.prompts": _COUNT,
    "merge.max_kl": _POSITIVE,
    "evaluate.confidence": Range(0.5, 0.999),
    "evaluate.resamples": Range(100),
    "chat.max_new_tokens": _COUNT,
    "chat.temperature": _POSITIVE,
    "chat.top_p": Range(0, 1, above=True),
    "chat.top_k": _NOT_NEGATIVE,
    "chat.repetition_penalty": _POSITIVE,
    "speed.activation_memory_budget": _SHARE,
    "parallel.num_processes": _COUNT,
    "parallel.reduce_bucket_size": _COUNT,
    "parallel.stage3_param_persistence_threshold": _NOT_NEGATIVE,
    "plan.cells": _COUNT,
    "benchmark.steps": _COUNT,
    "benchmark.warmup": _COUNT,
    "benchmark.length": Range(64, 2**20),  # a template's own tokens and an answer must find room
    "trainer.learning_rate": _NOT_NEGATIVE,
    "trainer.weight_decay": _NOT_NEGATIVE,
    "trainer.warmup_steps": _NOT_NEGATIVE,
    "trainer.adam_beta1": Range(0, 1, below=True),
    "trainer.adam_beta2": Range(0, 1, below=True),
    "trainer.adam_epsilon": _POSITIVE,
    "trainer.max_grad_norm": _NOT_NEGATIVE,
    "trainer.label_smoothing_factor": _SHARE,
    "trainer.max_steps": Range(1, 2**31 - 1, off=-1),
    "trainer.num_train_epochs": _POSITIVE,
    "trainer.per_device_train_batch_size": _COUNT,
    "trainer.per_device_eval_batch_size": _COUNT,
    "trainer.gradient_accumulation_steps": _COUNT,
    "trainer.eval_accumulation_steps": _COUNT,
    "trainer.logging_steps": _POSITIVE,
    "trainer.eval_steps": _POSITIVE,
    "trainer.save_steps": _POSITIVE,
    "trainer.save_total_limit": _COUNT,
    "trainer.dataloader_num_workers": Range(0, 256),  # each a process of its own
    "trainer.dataloader_prefetch_factor": Range(1, 1024),
    "trainer.dataset_num_proc": Range(1, 256),
    "trainer.max_length": _COUNT,
    "trainer.pad_to_multiple_of": Range(1, 2**16),
    "trainer.beta": _NOT_NEGATIVE,
    "trainer.label_smoothing": _SHARE,
    "trainer.ld_alpha": _SHARE,
    "trainer.discopop_tau": _POSITIVE,
    "trainer.precompute_ref_batch_size": _COUNT,
    "trainer.ref_model_mixup_alpha": Range(0, 1, above=True),
    "trainer.ref_model_sync_steps": _COUNT,
}


def get(values: Values, key: str) -> Any:
    """The value of a key such as ``seed`` or ``lora.r``, None when it is not there."""
    section, _, name = key.rpartition(".")
    inside = values.get(section) if section else values
    return inside.get(name) if isinstance(inside, dict) else None


def cross_check(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue for each value out of range and each conflict of keys; a section is a dictionary or None."""
    for check in _CHECKS:
        yield from check(values, origins)


def _check_values(values: Values, origins: Origins) -> Iterator[Issue]:
    for key, bounds in RANGES.items():
        value = get(values, key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value not in bounds:
            yield Issue(origins.where(key), f"{key}={value} is out of range", f"allowed: {bounds}")
    for key, choices in CHOICES.items():
        value = get(values, key)
        if isinstance(value, str) and value not in choices:
            yield Issue(origins.where(key), f"{key}: {value!r} is not allowed", nearest(value, choices))


def _check_model(values: Values, origins: Origins) -> Iterator[Issue]:
    model = values.get("model") or {}
    path, architecture = model.get("path"), model.get("architecture")
    known = [file.stem for file in ARCHITECTURES.glob("*.json")]
    if model.get("weights") == "random":
        if architecture not in known:
            message = f"model.weights=random needs model.architecture, got {architecture!r}"
            yield Issue(origins.where("model.architecture"), message, nearest(architecture, known))
    elif not path:
        hint = "a hub name, a folder or a .gguf file; or choose one: model=..."
        yield Issue(origins.where("model.path"), "model.path must be given", hint)
    elif isinstance(path, str) and path_rules.looks_local(path) and not path_rules.exists(path):
        yield path_rules.not_there("model.path", path, path_rules.nearest_file(path), origins)


def _check_quantization(values: Values, origins: Origins) -> Iterator[Issue]:
    quantization, lora = values.get("quantization") or {}, values.get("lora") or {}
    if not quantization:
        return
    key = "quantization._target_"
    if not lora:
        yield Issue(
            origins.where(key),
            "a quantised base cannot be fully fine-tuned",
            "lora=r16, or quantization=none",
        )
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        yield Issue(
            origins.where(key), "load_in_4bit and load_in_8bit contradict each other", "keep one of them"
        )
    kind = str(lora.get("_target_", "")).rpartition(".")[2]
    if quantization.get("_target_") == FP8 and lora and kind not in _ON_FP8:
        message = f"{kind} may read the base's weights, which in fp8 are numbers without their scales"
        yield Issue(
            origins.where("lora._target_"), message, "lora=r16, dora, adalora or ia3; or quantization=nf4"
        )


def _check_precision(values: Values, origins: Origins) -> Iterator[Issue]:
    trainer = values.get("trainer") or {}
    precision = trainer.get("precision", "auto")
    given = [name for name in ("bf16", "fp16") if trainer.get(name)]
    if len(given) == 2:
        message = "trainer.fp16 and trainer.bf16 contradict each other"
        yield Issue(origins.where("trainer.fp16"), message, "keep one of them")
    for name in given:
        if precision not in ("auto", name):
            message = f"trainer.{name}=true contradicts trainer.precision={precision}"
            yield Issue(origins.where(f"trainer.{name}"), message, "keep one of them")


def _check_evaluation(values: Values, origins: Origins) -> Iterator[Issue]:
    trainer, data = values.get("trainer") or {}, values.get("data") or {}
    evaluates, saves = trainer.get("eval_strategy", "no"), trainer.get("save_strategy", "steps")
    best, held_out = trainer.get("load_best_model_at_end"), data.get("eval_path") or data.get("eval_split")
    wants = {
        "trainer.eval_strategy": evaluates not in ("no", False, None),
        "trainer.load_best_model_at_end": best,
        "trainer.eval_on_start": trainer.get("eval_on_start"),
    }
    wants["data.metric"] = data.get("metric")
    for key in (key for key, wanted in wants.items() if wanted and not held_out):
        message = f"{key}={get(values, key)} needs held-out rows"
        yield Issue(origins.where(key), message, "set data.eval_path or data.eval_split")
    if data.get("eval_path") and data.get("eval_split"):
        message = "data.eval_path and data.eval_split contradict each other"
        yield Issue(origins.where("data.eval_split"), message, "keep one of them")
    key = "trainer.load_best_model_at_end"
    if best and evaluates == "no":
        yield Issue(
            origins.where(key), "trainer.load_best_model_at_end needs trainer.eval_strategy", "epoch or steps"
        )
    elif evaluates == "no" and trainer.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        message = "trainer.lr_scheduler_type=reduce_lr_on_plateau needs trainer.eval_strategy"
        yield Issue(origins.where("trainer.lr_scheduler_type"), message, "epoch or steps")
    elif saves == "best" and (evaluates == "no" or not (best or trainer.get("metric_for_best_model"))):
        message = "trainer.save_strategy=best needs an evaluation, and the metric that is compared"
        hint = "trainer.eval_strategy=steps trainer.metric_for_best_model=loss"
        yield Issue(origins.where("trainer.save_strategy"), message, hint)
    elif best and saves not in (evaluates, "best"):
        message = f"trainer.load_best_model_at_end with eval_strategy={evaluates} and save_strategy={saves}"
        yield Issue(origins.where(key), message, f"set trainer.save_strategy={evaluates}, or best")
    elif best and evaluates == saves == "steps":
        every, kept = trainer.get("eval_steps"), trainer.get("save_steps", 500)
        if isinstance(every, int) and isinstance(kept, int) and every > 0 and kept % every:
            message = f"trainer.save_steps={kept} is not a multiple of trainer.eval_steps={every}"
            hint = "load_best_model_at_end needs an evaluation of every checkpoint"
            yield Issue(origins.where("trainer.save_steps"), message, hint)


def _check_trainer(values: Values, origins: Origins) -> Iterator[Issue]:
    trainer = values.get("trainer") or {}
    if trainer.get("packing") and trainer.get("max_length", 1024) is None:
        message = "trainer.packing needs trainer.max_length"
        yield Issue(origins.where("trainer.max_length"), message, "set trainer.max_length")
    for name, (what, hint) in _INEXACT.items():
        if trainer.get(name):
            yield Issue(origins.where(f"trainer.{name}"), f"trainer.{name} {what}", hint)


# Fields of the library that would quietly change what is trained.
_INEXACT = {
    "auto_find_batch_size": (
        "would leave gradient_accumulation_steps, so that a step has fewer rows",
        "on_oom=shrink keeps the rows of a step",
    ),
    "enable_jit_checkpoint": (
        "does not resume exactly",
        "a run that gets SIGTERM leaves a checkpoint anyway",
    ),
    "ignore_data_skip": ("would train on the first rows again after a resume", "leave it out"),
}


_CHECKS: tuple[Callable[[Values, Origins], Iterator[Issue]], ...] = (
    _check_values,
    _check_model,
    _check_quantization,
    check_lora,
    _check_precision,
    _check_evaluation,
    _check_trainer,
    check_parallel,
    check_idle,
    check_losses,
    check_reference,
    check_patterns,
    path_rules.check_paths,
    read_template,
    check_trust,
)
