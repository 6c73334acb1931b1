"""Floating-point operations of a training step.

The usual count (arXiv:2001.08361, section 2.1; arXiv:2204.02311, appendix B): a linear layer of N weights
takes 2N operations a token forward, 2N backward for the gradient of its input, and 2N more for that of its
weight, which a frozen layer does not have. So 4N a token for the frozen base, 6N for what is trained: an
adapter's matrices, or every layer in full fine-tuning. The head counts for labelled tokens only. Attention
takes 4 L w a token and layer forward (scores and their product with the values; L tokens in the row, w the
width of all query heads), half of it under the causal mask, and twice the forward in backward. A reference
policy is one more forward pass. Padding, recomputed activations and de-quantisation are no useful work, and
embeddings, norms and element-wise functions are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides the operations of a step.

    ``frozen`` and ``trained`` are the weights of the linear layers without the head, which has ``head``.
    ``width`` is that of all query heads of a layer together.
    """

    frozen: int
    trained: int
    head: int
    head_trained: bool
    layers: int
    width: int


def step_flops(size: ModelSize, lengths: Sequence[int], labelled: int, reference: bool = False) -> float:
    """Operations of a step over rows of ``lengths`` tokens, ``labelled`` of which have a loss.

    ``reference`` says that a frozen reference policy reads the rows, too.
    """
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    attention = 2 * size.layers * size.width * squares  # forward, causal
    forward = 2 * tokens * (size.frozen + size.trained) + 2 * labelled * size.head + attention
    backward = 2 * tokens * (size.frozen + 2 * size.trained) + 2 * attention
    backward += 2 * labelled * size.head * (2 if size.head_trained else 1)
    seen_again = 2 * tokens * size.frozen + 2 * labelled * size.head + attention if reference else 0
    return float(forward + backward + seen_again)
