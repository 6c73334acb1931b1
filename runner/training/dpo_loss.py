"""TRL's preference losses on log-probabilities that are there already, without a trainer around them."""

from __future__ import annotations

import functools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from runner.speed.decoder import FastDecoder
from runner.speed.flat import Flat
from runner.speed.token_loss import TokenLogprobs, token_logprobs

# What TRL logs of a batch of pairs, in its order; ``num_tokens`` is a running total, which is kept elsewhere.
METRICS = (
    "entropy",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
_OF_BATCHES = ("aot", "aot_unpaired", "sft")  # their mean over a batch is not one over its pairs


def by_pair(arguments: Any) -> bool:
    """Whether the loss of a batch is the mean of the losses of its pairs."""
    return not any(loss in _OF_BATCHES for loss in arguments.loss_type)


def pair_weights(pairs: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    """What ``METRICS`` are means over: ``pairs``, and labelled tokens of the ``chosen`` and ``rejected``
    sequences. Numbers, or tensors with a value for each cell."""
    return {
        "": pairs,
        "entropy": chosen + rejected,
        "mean_token_accuracy": chosen,
        "logits/chosen": chosen,
        "logits/rejected": rejected,
    }


def as_output(scores: TokenLogprobs) -> FusedCausalLMOutput:
    """Scores under the names that TRL's losses read."""
    return FusedCausalLMOutput(
        log_probs=scores.log_probs,
        entropy=scores.entropy,
        mean_logits=scores.mean_logits,
        is_top1=scores.is_top1,
    )


def pair_loss(
    arguments: Any, output: FusedCausalLMOutput, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[float]]:
    """The loss of a batch under a ``DPOConfig``, and ``METRICS``.

    ``batch`` has ``input_ids`` and ``completion_mask`` [2 pairs, length], chosen rows before rejected ones,
    and the reference's ``ref_chosen_logps`` and ``ref_rejected_logps`` [pairs]; ``output`` is what the model
    says of it. It is ``DPOTrainer``'s own loss, which looks at nothing else of its trainer.
    """
    found: dict[str, list[float]] = defaultdict(list)
    stand_in: Any = SimpleNamespace(
        args=arguments,
        beta=arguments.beta,
        label_smoothing=arguments.label_smoothing,
        loss_types=arguments.loss_type,
        loss_weights=arguments.loss_weights or [1.0] * len(arguments.loss_type),
        ld_alpha=None,
        f_divergence_type=arguments.f_divergence_type,
        f_alpha_divergence_coef=arguments.f_alpha_divergence_coef,
        use_weighting=False,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=batch["input_ids"].device, gather=_same, gather_for_metrics=_same),
        _metrics={"train": found},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {**batch, "attention_mask": batch["completion_mask"]}
    loss = DPOTrainer._compute_loss(stand_in, lambda **_: output, inputs, False)
    return loss, [found[name][0] for name in METRICS]


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def use_chunked_loss(model: Any, decoder: FastDecoder) -> None:
    """Let ``DPOTrainer`` score with ``runner.speed.token_loss``, by the ``decoder`` of the model.

    It is faster than TRL's, and computes float64 models in float64. The batches are those of ``WithPlaces``,
    of which the trainer hands on to the model what it does not know.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.forward

    @functools.wraps(before)
    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return before(*args, **kwargs)
        wanted = {name: kwargs[name] for name in ("input_ids", "labels", "attention_mask")}
        places, flat = kwargs["places"], kwargs["flat"]
        scores = token_logprobs(
            base,
            **wanted,
            places=tuple(places),
            mean_logits=True,
            decoder=decoder,
            flat=flat and Flat(*flat),
        )
        return as_output(scores)

    base.forward = forward
