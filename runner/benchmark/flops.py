"""Floating-point operations of a training step, and how many a second the device does in a matrix product.

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

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_SIDE_CUDA, _SIDE = 8192, 1024  # of the square matrices: 1.1 TFLOP a product, or 2 GFLOP


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

    @classmethod
    def of(cls, model: Any) -> ModelSize | None:
        """The size of a model, 4-bit weights counted unpacked; None for one with experts, of which a token
        takes some."""
        config = model.config.get_text_config()
        if any(
            getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
        ):
            return None
        head = model.get_output_embeddings()
        # of a head that is trained in full, or has an adapter, PEFT wraps the layer
        inside = list(head.modules()) if head is not None else []
        sizes = {True: 0, False: 0}
        heads = {True: 0, False: 0}
        for module in model.modules():
            if weights := _linear_weights(module):
                trained = any(parameter.requires_grad for parameter in module.parameters())
                found = heads if any(module is part for part in inside) else sizes
                found[trained] += weights
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            frozen=sizes[False],
            trained=sizes[True],
            head=heads[True] or heads[False],
            head_trained=heads[True] > 0,
            layers=config.num_hidden_layers,
            width=width * config.num_attention_heads,
        )


def _linear_weights(module: Any) -> int:
    """Weights of a linear layer, 0 for any other module."""
    if any(True for _ in module.children()) or isinstance(module, torch.nn.Embedding):
        return 0
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features * module.out_features  # 4-bit weights are packed
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, torch.Tensor) and weight.dim() == 2 else 0


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


def matmul_rate(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> tuple[float, float]:
    """Floating-point operations a second of a large square matrix product, the median over ``seconds``; and
    how many seconds it really took to find out."""
    entered = time.perf_counter()
    side = _SIDE_CUDA if device.type == "cuda" else _SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times, repeats = [], 10 if device.type == "cuda" else 1
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right)
        _wait(device)
        times.append((time.perf_counter() - started) / repeats)
    del left, right
    if device.type == "cuda":
        torch.cuda.empty_cache()
    times = sorted(times[1:])  # the first one selects a kernel
    return 2 * side**3 / times[len(times) // 2], time.perf_counter() - entered


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
