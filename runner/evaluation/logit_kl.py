"""How near one model is to another: both read the same texts, and their logits are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from runner.evaluation.row_loss import cast
from runner.models.model import Precision

_POSITIONS = 256  # logits kept of each text, its last ones: those of the answer


@dataclass(frozen=True)
class Fidelity:
    """Largest difference of two logits, KL divergence (nats a token), top-1 agreement (0 to 1)."""

    max_difference: float
    kl: float
    greedy_agreement: float
    tokens: int


def read_texts(model: Any, texts: list[list[int]], precision: Precision) -> list[torch.Tensor]:
    """Logits of each text's last 256 tokens at most: (tokens, vocabulary), float32, in main memory.

    A model with a head of classes gives one row a text; one with a single score, that of the score and 0,
    whose softmax is the probability of being preferred to a text that scores 0.
    """
    model.eval()
    found = []
    for text in texts:
        with torch.inference_mode(), cast(model.device, precision.autocast):
            logits = model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits
        rows = logits.flatten(0, -2)[-_POSITIONS:].float()
        if rows.shape[-1] == 1:
            rows = torch.cat([rows, torch.zeros_like(rows)], dim=-1)
        found.append(rows.cpu())
    return found


def compare(expected: list[torch.Tensor], found: list[torch.Tensor]) -> Fidelity:
    """Compare two models' logits on the same texts; the KL divergence is of ``found`` from ``expected``.

    KL(p || q) = sum p (log p - log q), averaged over all tokens; not a number if any logit is not finite.
    """
    difference, kl, agreeing, tokens = 0.0, 0.0, 0, 0
    for ours, theirs in zip(expected, found, strict=True):
        p, q = (torch.log_softmax(logits.double(), dim=-1) for logits in (ours, theirs))
        kl += float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
        difference = max(difference, float((ours - theirs).abs().max()))
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        tokens += len(ours)
    return Fidelity(difference, kl / tokens, agreeing / tokens, tokens)
