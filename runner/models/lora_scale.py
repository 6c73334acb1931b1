"""What multiplies the term that a LoRA adapter adds to a layer."""

from __future__ import annotations

import math


def lora_scale(alpha: float, rank: float, rank_stabilised: bool = False) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv:2312.03732), as PEFT computes it."""
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)
