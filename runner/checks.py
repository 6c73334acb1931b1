"""Every mistake in a composed config that can be found without importing a library or reading data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from runner import settings
from runner.errors import Problem, nearest
from runner.fields import Field, UnknownTarget, class_fields, target_fields
from runner.origins import Origins
from runner.paths import ARCHITECTURES, EXAMPLES

Values = dict[str, Any]

# Fields of the TRL config that another key of the runner decides, so that no value stands in two places.
RESERVED_TRAINER = {
    "output_dir": "set output_dir",
    "seed": "set seed",
    "data_seed": "set seed",
    "run_name": "it is the name of the run folder",
    "model_init_kwargs": "set the keys of model",
    "trust_remote_code": "set model.trust_remote_code",
    "chat_template_path": "set template.chat_template",
    "resume_from_checkpoint": "set resume",
    "assistant_only_loss": "set data.train_on",
    "completion_only_loss": "set data.train_on",
    "dataset_text_field": "set data.columns",
    "dataset_kwargs": "the runner prepares the rows",
    "eos_token": "set template.stop",
    "pad_token": "the runner chooses it",
    "do_train": "set recipe",
    "do_eval": "set recipe",
    "do_predict": "set recipe",
}

# Two keys that say the same thing in different ways: of two sources the stronger wins, within one it is a mistake.
EXCLUSIVE = (("trainer.max_steps", "trainer.num_train_epochs"),)

# (key, smallest allowed, largest allowed, whether the bounds themselves are allowed)
RANGES = (
    ("seed", 0, 2**32 - 1, True),
    ("lora.r", 1, float("inf"), True),
    ("lora.lora_dropout", 0, 0.999, True),
    ("data.eval_split", 0, 0.999, True),
    ("data.max_rows", 1, float("inf"), True),
    ("generation.samples", 0, float("inf"), True),
    ("generation.batch_size", 1, float("inf"), True),
    ("generation.max_new_tokens", 1, float("inf"), True),
    ("trainer.learning_rate", 0, float("inf"), True),
    ("trainer.per_device_train_batch_size", 1, float("inf"), True),
    ("trainer.per_device_eval_batch_size", 1, float("inf"), True),
    ("trainer.gradient_accumulation_steps", 1, float("inf"), True),
    ("trainer.num_train_epochs", 0, float("inf"), False),
    ("trainer.max_length", 1, float("inf"), True),
)


def check_config(values: Values, origins: Origins) -> list[Problem]:
    """All problems of a composed config; settles ``EXCLUSIVE`` keys in place. Empty means it can be frozen."""
    problems = list(_check_keys(values, origins))
    if any(values.get(name) is not None and not isinstance(values[name], dict) for name in _sections()):
        return problems  # a section replaced by a scalar: nothing below it can be looked at
    problems += _check_exclusive(values, origins)
    for check in CROSS_CHECKS:
        problems += check(values, origins)
    return problems


def known_fields(section: str, target: str | None) -> dict[str, Field]:
    """Fields that may stand in a section: the runner's own, and those of the library class it names."""
    own = settings.OWN_SECTIONS.get(section)
    fields = dict(_own_fields(own)) if own else {}
    if section == "trainer":
        fields |= _own_fields(settings.TrainerExtras)
    if target:
        fields |= target_fields(section, target)
    return fields


@cache
def _own_fields(kind: type) -> dict[str, Field]:
    return class_fields(Path(settings.__file__), kind.__name__)


def _sections() -> tuple[str, ...]:
    return (*settings.OWN_SECTIONS, *settings.LIBRARY_SECTIONS)


def _check_keys(values: Values, origins: Origins) -> Iterator[Problem]:
    top = _own_fields(settings.RunConfig)
    for key, value in values.items():
        if key not in top:
            yield Problem(origins.where(key), f"unknown key {key!r}", nearest(key, top))
        elif key in _sections():
            if value is not None and not isinstance(value, dict):
                yield Problem(origins.where(key), f"{key} is a section of keys, got {value!r}")
            else:
                yield from _check_section(key, value or {}, origins)
        elif value == "???":
            yield Problem(origins.where(key), f"{key} must be given", f"add {key}=...")
        elif reason := top[key].problem(value):
            yield Problem(origins.where(key), f"{key}: {reason}")


def _check_section(section: str, values: Values, origins: Origins) -> Iterator[Problem]:
    target = values.get("_target_")
    if target is None and section in settings.LIBRARY_SECTIONS and values:
        yield Problem(
            origins.where(f"{section}.{next(iter(values))}"),
            f"{section} has keys but names no class; {section}=none takes none",
            f"choose one: {section}=...",
        )
        return
    try:
        fields = known_fields(section, str(target) if target is not None else None)
    except UnknownTarget as error:
        yield Problem(origins.where(f"{section}._target_"), f"{section}._target_: {error}")
        return
    for name, value in values.items():
        key = f"{section}.{name}"
        if name == "_target_" and section in settings.LIBRARY_SECTIONS:
            continue
        if name not in fields:
            yield Problem(origins.where(key), f"unknown key {key!r}", nearest(name, fields))
        elif section == "trainer" and name in RESERVED_TRAINER:
            yield Problem(
                origins.where(key), f"{key} is decided elsewhere", f"instead: {RESERVED_TRAINER[name]}"
            )
        elif value == "???":
            yield Problem(origins.where(key), f"{key} must be given", f"add {key}=...")
        elif reason := fields[name].problem(value):
            yield Problem(origins.where(key), f"{key}: {reason}")


def _check_exclusive(values: Values, origins: Origins) -> Iterator[Problem]:
    for pair in EXCLUSIVE:
        given = [key for key in pair if _get(values, key) is not None]
        if len(given) < 2:
            continue
        first, second = sorted(given, key=origins.rank, reverse=True)
        if origins.rank(first) == origins.rank(second):
            both = " and ".join(f"{key}={_get(values, key)}" for key in pair)
            yield Problem(origins.where(first), f"{both} contradict each other", "keep one of them")
        else:
            section, _, name = second.partition(".")
            del values[section][name]


def _check_ranges(values: Values, origins: Origins) -> Iterator[Problem]:
    for key, low, high, closed in RANGES:
        value = _get(values, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not (low <= value <= high if closed else low < value < high):
            bound = f"at least {low}" if high == float("inf") and closed else f"between {low} and {high}"
            yield Problem(origins.where(key), f"{key}={value} is out of range", f"allowed: {bound}")


def _check_model(values: Values, origins: Origins) -> Iterator[Problem]:
    model = values.get("model") or {}
    path, random = model.get("path"), model.get("weights") == "random"
    known = [file.stem for file in ARCHITECTURES.glob("*.json")]
    if random and model.get("architecture") not in known:
        message = f"model.weights=random needs model.architecture, got {model.get('architecture')!r}"
        yield Problem(origins.where("model.architecture"), message, nearest(model.get("architecture"), known))
    if not random and not path:
        yield Problem(
            origins.where("model.path"), "model.path must be given", "a hub name, a folder or a .gguf file"
        )
    if not random and isinstance(path, str) and _looks_local(path) and not Path(path).expanduser().exists():
        yield Problem(origins.where("model.path"), f"model.path: nothing is at {path!r}", _nearest_file(path))


def _check_quantization(values: Values, origins: Origins) -> Iterator[Problem]:
    quantization, lora = values.get("quantization") or {}, values.get("lora") or {}
    if not quantization:
        return
    where = origins.where("quantization.load_in_4bit")
    if not lora:
        yield Problem(where, "a quantised base cannot be fully fine-tuned", "lora=r16, or quantization=none")
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        yield Problem(where, "load_in_4bit and load_in_8bit contradict each other", "keep one of them")
    init = lora.get("init_lora_weights")
    if isinstance(init, str) and init.split("_")[0] in ("pissa", "olora", "corda", "loftq"):
        message = (
            f"lora.init_lora_weights={init} changes the base weights, which a quantised base does not allow"
        )
        yield Problem(
            origins.where("lora.init_lora_weights"), message, "quantization=none, or init_lora_weights=true"
        )


def _check_precision(values: Values, origins: Origins) -> Iterator[Problem]:
    trainer = values.get("trainer") or {}
    precision, bf16, fp16 = trainer.get("precision", "auto"), trainer.get("bf16"), trainer.get("fp16")
    if bf16 and fp16:
        yield Problem(
            origins.where("trainer.fp16"), "trainer.fp16 and trainer.bf16 contradict each other", "keep one"
        )
    for name, value in (("bf16", bf16), ("fp16", fp16)):
        if value and precision not in ("auto", name):
            message = f"trainer.{name}=true contradicts trainer.precision={precision}"
            yield Problem(origins.where(f"trainer.{name}"), message, "keep one of them")


def _check_trainer(values: Values, origins: Origins) -> Iterator[Problem]:
    trainer, data = values.get("trainer") or {}, values.get("data") or {}
    if trainer.get("packing") and trainer.get("max_length", 1024) is None:
        yield Problem(
            origins.where("trainer.max_length"), "trainer.packing needs trainer.max_length", "set max_length"
        )
    has_eval = data.get("eval_path") or data.get("eval_split")
    wants_eval = [
        key
        for key in ("eval_strategy", "load_best_model_at_end")
        if trainer.get(key, "no") not in ("no", False)
    ]
    for key in wants_eval if not has_eval else ():
        message = f"trainer.{key}={trainer[key]} needs held-out rows"
        yield Problem(origins.where(f"trainer.{key}"), message, "set data.eval_path or data.eval_split")
    if data.get("metric") and not has_eval:
        message = f"data.metric={data['metric']} needs held-out rows"
        yield Problem(origins.where("data.metric"), message, "set data.eval_path or data.eval_split")
    if data.get("eval_path") and data.get("eval_split"):
        message = "data.eval_path and data.eval_split contradict each other"
        yield Problem(origins.where("data.eval_split"), message, "keep one of them")


def _check_paths(values: Values, origins: Origins) -> Iterator[Problem]:
    data = values.get("data") or {}
    if not data.get("path"):
        yield Problem(
            origins.where("data.path"), "data.path must be given", "a file, a hub name, or embedded:orders"
        )
    for key in ("path", "eval_path"):
        given = data.get(key)
        for source in given if isinstance(given, list) else [given]:
            path = source.get("path") if isinstance(source, dict) else source
            if isinstance(path, str) and path.startswith("embedded:"):
                known = [file.stem for file in EXAMPLES.glob("*.jsonl")]
                if path.removeprefix("embedded:") not in known:
                    yield Problem(
                        origins.where(f"data.{key}"),
                        f"data.{key}: no embedded data set {path!r}",
                        nearest(path.removeprefix("embedded:"), known),
                    )
            elif isinstance(path, str) and _looks_local(path) and not Path(path).expanduser().exists():
                yield Problem(
                    origins.where(f"data.{key}"), f"data.{key}: nothing is at {path!r}", _nearest_file(path)
                )
            elif isinstance(source, dict) and (
                set(source) - {"path", "weight", "format", "columns"} or not path
            ):
                message = f"data.{key}: a source of a mix has path and optionally weight, format, columns; got {source}"
                yield Problem(origins.where(f"data.{key}"), message)
    for key in ("adapter", "resume"):
        value = values.get(key)
        if isinstance(value, str) and value != "auto" and not Path(value).expanduser().exists():
            yield Problem(origins.where(key), f"{key}: nothing is at {value!r}", _nearest_file(value))


def _looks_local(path: str) -> bool:
    """Whether a path can only mean this machine: a hub name is NAME or OWNER/NAME without a file's ending."""
    endings = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gguf", ".txt", ".zip", ".gz")
    return (
        path.startswith((".", "/", "~")) or path.endswith(endings) or (path.count("/") > 1 and ":" not in path)
    )


def _nearest_file(path: str) -> str:
    folder = Path(path).expanduser().parent
    while not folder.is_dir():
        folder = folder.parent
    found = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return f"in {folder}/: {nearest(Path(path).name, found)}"


def _get(values: Values, key: str) -> Any:
    section, _, name = key.rpartition(".")
    inside = (values.get(section) or {}) if section else values
    return inside.get(name)


CROSS_CHECKS: tuple[Callable[[Values, Origins], Iterator[Problem]], ...] = (
    _check_ranges,
    _check_model,
    _check_quantization,
    _check_precision,
    _check_trainer,
    _check_paths,
)
