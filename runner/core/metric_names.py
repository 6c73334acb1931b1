"""The metrics of runs by key: how each is called, and which are shares."""

from __future__ import annotations

# Results of a run and how they are called, in the order in which they are shown.
RESULTS = {
    "train_loss": "training loss",
    "eval_loss": "held-out loss",
    "eval_rewards_accuracies": "reward accuracy",
    "eval_rewards_margins": "reward margin",
    "eval_accuracy": "accuracy",
    "eval_f1": "macro F1",
    "exact_match_after": "exact match",
    "exact_match": "exact match",
    "merge_kl": "KL, merged from adapter model",
    "merge_max_logit_difference": "largest logit difference",
    "merge_greedy_agreement": "same next token",
    "gguf_kl": "KL, GGUF from merged model",
    "gguf_greedy_agreement": "same next token, GGUF",
    "int4_kl": "KL, NF4 from merged model",
    "int4_greedy_agreement": "same next token, NF4",
}
SHARES = (
    "exact_match",
    "json_valid",
    "eval_rewards_accuracies",
    "eval_accuracy",
    "merge_greedy_agreement",
    "gguf_greedy_agreement",
    "int4_greedy_agreement",
)
