"""The one table of metrics: how each is called, which direction is better, and whether it is a share.

Everything that shows, ranks or compares a metric asks ``find_metric``: the terminal, ``evaluation.json``, the
leaderboard, the reports, the model card and the check of ``sweep.metric``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown and ranked.

    ``label`` is in the middle of a sentence ("held-out loss"); ``higher`` says that more is better; a
    ``share`` lies between 0 and 1 and is shown in percent.
    """

    label: str
    higher: bool = True
    share: bool = False

    @property
    def title(self) -> str:
        """The label at the start of a line; a name with capitals of its own ("chrF") is left as it is."""
        word = self.label.partition(" ")[0]
        return self.label[:1].upper() + self.label[1:] if word.islower() else self.label


# By key of run.json, evaluation.json or metrics.jsonl, without ``_before`` and ``_after``, "_" for "/".
METRICS = {
    # training and held-out rows
    "train_loss": Metric("training loss", higher=False),
    "eval_loss": Metric("held-out loss", higher=False),
    "eval_rewards_accuracies": Metric("reward accuracy", share=True),
    "eval_rewards_margins": Metric("reward margin"),
    "eval_accuracy": Metric("accuracy", share=True),
    "eval_margin": Metric("score margin"),
    "eval_f1": Metric("macro F1", share=True),
    # answers and texts
    "loss": Metric("loss", higher=False),
    "perplexity": Metric("perplexity", higher=False),
    "exact_match": Metric("exact match", share=True),
    "json_valid": Metric("valid JSON", share=True),
    "rouge_l": Metric("ROUGE-L"),
    "chrf": Metric("chrF"),
    "bleu": Metric("BLEU"),
    # a merged or exported model against the one that it was made from; KL in nats a token
    "merge_kl": Metric("KL divergence, merged from adapter model", higher=False),
    "merge_max_logit_difference": Metric("largest logit difference", higher=False),
    "merge_greedy_agreement": Metric("top-1 agreement", share=True),
    "gguf_kl": Metric("KL divergence, GGUF from merged model", higher=False),
    "gguf_greedy_agreement": Metric("top-1 agreement, GGUF", share=True),
    "int4_kl": Metric("KL divergence, NF4 from merged model", higher=False),
    "int4_greedy_agreement": Metric("top-1 agreement, NF4", share=True),
    # curves of metrics.jsonl
    "rewards_accuracies": Metric("reward accuracy", share=True),
    "rewards_margins": Metric("reward margin"),
    "learning_rate": Metric("learning rate"),
    "grad_norm": Metric("gradient norm", higher=False),
    "mean_token_accuracy": Metric("token accuracy", share=True),
    # speed and memory
    "tokens_per_second": Metric("tokens per second"),
    "peak_memory_bytes": Metric("peak memory", higher=False),
}
# The results of a run that its last table and a chain show, in this order.
RESULTS = (
    "train_loss",
    "eval_loss",
    "eval_rewards_accuracies",
    "eval_rewards_margins",
    "eval_accuracy",
    "eval_f1",
    "exact_match",
    "merge_kl",
    "merge_max_logit_difference",
    "merge_greedy_agreement",
    "gguf_kl",
    "gguf_greedy_agreement",
    "int4_kl",
    "int4_greedy_agreement",
)

# For names that are not in the table: a user's own function, and what a trainer logs besides.
_LOWER = re.compile(r"(^|_)(loss|perplexity|kl|error|difference|seconds|ms|bytes|norm|wer|cer)(_|$)")
_SHARE = re.compile(r"(^|_)(match|accuracy|accuracies|f1|share)(_|$)")


def find_metric(key: str) -> Metric:
    """The metric that a key names; one that the table lacks is judged by the words of its name."""
    name = key.replace("/", "_").removesuffix("_before").removesuffix("_after")
    known = METRICS.get(name) or METRICS.get(name.removeprefix("eval_"))
    if known:
        return known
    words = name.removeprefix("eval_").removesuffix("_bytes").replace("_", " ").strip() or key
    return Metric(words, higher=_LOWER.search(name) is None, share=_SHARE.search(name) is not None)


def in_record(metric: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that a metric means: ``exact_match`` may stand for ``exact_match_after``."""
    known = set(names)
    return next((name for name in (metric, f"{metric}_after", f"eval_{metric}") if name in known), None)
