"""The sections of the config that belong to one recipe: their keys, types and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MergeSettings:
    """How several adapters are combined before the merge, and how faithful the merged model must be.

    ``weights`` are one for each adapter; null is their average. ``combination_type``, ``svd_rank``,
    ``density`` and ``majority_sign_method`` are PEFT's, of ``add_weighted_adapter``. The merge fails when the
    mean KL divergence (nats a token) of merged from adapter model on ``prompts`` held-out rows is above
    ``max_kl``.
    """

    weights: list | None = None
    combination_type: Literal[
        "linear",
        "cat",
        "svd",
        "ties",
        "ties_svd",
        "dare_linear",
        "dare_linear_svd",
        "dare_ties",
        "dare_ties_svd",
        "magnitude_prune",
        "magnitude_prune_svd",
    ] = "linear"
    svd_rank: int | None = None
    density: float | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    prompts: int = 8
    max_kl: float = 0.01
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_shard_size: str = "5GB"


@dataclass(frozen=True)
class GgufSettings:
    """``export=gguf``: the ``kind`` of its tensors, or several, a file each.

    ``llama_cpp`` is a checkout, for the kinds that need one.
    """

    kind: str | list = "q8_0"
    llama_cpp: str | None = None


@dataclass(frozen=True)
class EvaluateSettings:
    """What ``recipe=evaluate`` measures; null for ``metrics`` means every one that fits the rows.

    ``function`` is ``FILE.py:NAME``, called as ``NAME(answer, expected)`` for a number. ``tasks`` are those
    of the optional package ``lm-eval``. Intervals are percentile bootstraps at ``confidence`` over
    ``resamples``.
    """

    metrics: list | None = None
    function: str | None = None
    tasks: list | None = None
    confidence: float = 0.95
    resamples: int = 1000


@dataclass(frozen=True)
class ChatSettings:
    """How ``recipe=chat`` draws its answers, under the names of transformers' ``GenerationConfig``."""

    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class BenchmarkSettings:
    """What ``recipe=benchmark`` measures: ``steps`` optimizer steps behind ``warmup`` ones that are left out.

    ``length`` makes rows of random words, each of exactly that many tokens (of pairs each sequence), in place
    of ``data``; null measures the config's own rows.
    """

    steps: int = 12
    warmup: int = 4
    length: int | None = None


@dataclass(frozen=True)
class PlanSettings:
    """For which GPU ``recipe=plan`` calculates: a name of its table (``rtx4090``, ``h100``) or a size
    (``24GiB``); null is the GPU that is found, or a table of sizes where there is none.

    ``cells`` is how many runs share each pass, as in a packed sweep. Recipes that train refuse what cannot
    fit their GPU, unless ``check`` is false.
    """

    gpu: str | None = None
    cells: int = 1
    check: bool = True
