"""Log-probabilities of the labelled tokens, without the logits of others and never of all rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from runner.data.labels import IGNORE
from runner.speed.decoder import FastDecoder
from runner.speed.flat import Flat
from runner.speed.pieces import AFTER_HEAD, Pieces, Without

# Logits held at once: on CUDA 256 MiB in bfloat16, elsewhere 32 MiB, which stays near the caches.
_LOGITS_CUDA, _LOGITS = 2**27, 2**24

Places = tuple[torch.Tensor, ...]


@dataclass
class TokenLogprobs:
    """Of each position [rows, length - 1] the log-probability and entropy (nats) of the next token, and
    whether it was the likeliest; zero where ``mask`` says that it has no label.

    ``mean_logits`` is the mean of the logits over the vocabulary, where it is wanted.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor
    mask: torch.Tensor
    mean_logits: torch.Tensor | None = None


def unsupported_loss(model: Any) -> str | None:
    """Why ``token_logprobs`` does not apply, which takes a plain frozen linear head whose outputs are the
    logits; None where it does."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt learning has tokens of its own"
    if getattr(getattr(model, "active_peft_config", None), "alora_invocation_tokens", None):
        return "PEFT's own pass finds where an activated LoRA begins"
    if type(head) is not torch.nn.Linear or head.weight.requires_grad:
        return "the output head is not a plain frozen linear layer"
    if changing := [name for name in AFTER_HEAD if getattr(config, name, None)]:
        return f"the model changes its logits ({changing[0]})"
    if hasattr(config, "router_aux_loss_coef"):
        return "a model with experts may have a loss of its own"
    return None


def fast_decoder(model: Any, pieces: Pieces, without: Without) -> FastDecoder | None:
    """The decoder for ``token_logprobs``; None where the loss is the library's.

    ``without`` is called with each of the ``pieces`` that this model cannot have.
    """
    if not pieces.chunked_loss:
        return None
    if reason := unsupported_loss(model):
        without("chunked_loss", reason)
        return None
    return FastDecoder(model, pieces, without)


def token_logprobs(
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    places: Places | None = None,
    mean_logits: bool = False,
    decoder: FastDecoder | None = None,
    attention_mask: torch.Tensor | None = None,
    flat: Flat | None = None,
) -> TokenLogprobs:
    """Score the tokens of ``input_ids`` [rows, length] whose label is not ignored; each given its past.

    Rows are padded on the right, where a causal model looks at nothing that is labelled: ``attention_mask``
    may be left out. ``places`` are rows and positions of these labels in ``labels[:, 1:]``; to find them on a
    GPU waits for all its work. ``decoder`` stands for the model's own, for which ``flat`` are the same rows
    side by side.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    targets = labels[:, 1:].to(head.weight.device)
    mask = targets != IGNORE
    places = places or mask.nonzero(as_tuple=True)
    if decoder is None:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        hidden = base.base_model(**inputs, use_cache=False).last_hidden_state[places]
    else:
        hidden = decoder(input_ids, places, attention_mask, flat)
    hidden = hidden.to(mask.device)
    found = _HeadScores.apply(hidden, head.weight, head.bias, targets[places])
    means = (_mean_logits(hidden.detach(), head),) if mean_logits else ()
    log_probs, entropy, is_top1, *means = (
        values.new_zeros(mask.shape).index_put(places, values) for values in (*found, *means)
    )
    return TokenLogprobs(log_probs, entropy, is_top1, mask, *means)


def _mean_logits(hidden: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """The mean of each token's logits, which is linear in the hidden state: no logits are made for it."""
    precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    means = (hidden.to(precise) * head.weight.mean(0, dtype=precise)).sum(-1)
    return means if head.bias is None else means + head.bias.mean(dtype=precise)


class _HeadScores(torch.autograd.Function):
    """Projection and log-softmax in chunks of tokens; the gradient of the hidden states is made on the way.

    The head is frozen, so that of each chunk of logits nothing is needed later: two matrix products a token
    where one that recomputes takes three.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            count = max(1, (_LOGITS_CUDA if kind == "cuda" else _LOGITS) // weight.shape[0])
            weight = weight.to(dtype)
            wanted, parts = ctx.needs_input_grad[0], []
            for part, target in zip(hidden.to(dtype).split(count), targets.split(count), strict=True):
                logits = torch.nn.functional.linear(part, weight, None if bias is None else bias.to(dtype))
                *scores, gradient = _scorer(kind)(logits, target, wanted)
                parts.append((*scores, (gradient @ weight).to(hidden.dtype) if wanted else scores[0]))
            found = [torch.cat(column) for column in zip(*parts, strict=True)]
        if wanted:
            ctx.save_for_backward(found[3])
        ctx.mark_non_differentiable(*found[1:3])
        return found[0], found[1], found[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[:, None]).to(gradient.dtype), None, None, None


def _score(
    logits: torch.Tensor, targets: torch.Tensor, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability, entropy and top-1 of each target, and what the log-probability gives to each logit."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    normalizer = z.logsumexp(-1, keepdim=True)
    column = targets[:, None]
    log_probs = (z.gather(-1, column) - normalizer).squeeze(-1)
    shares = (z - normalizer).exp()
    entropy = normalizer.squeeze(-1) - (shares * z).sum(-1)
    is_top1 = z.argmax(-1) == targets
    if not wanted:
        return log_probs, entropy, is_top1, log_probs
    marks = torch.arange(z.shape[-1], device=z.device) == column
    return log_probs, entropy, is_top1, (marks.to(z.dtype) - shares).to(logits.dtype)


@cache
def _scorer(kind: str) -> Any:
    """``_score``, on CUDA compiled into a few passes over the logits."""
    return torch.compile(_score, dynamic=True) if kind == "cuda" else _score
