"""The size of a loaded model for the count of its operations (``runner.plan.flops``), and how many a second
the device does in a matrix product."""

from __future__ import annotations

import time
from typing import Any

import torch

from runner.plan.built import of_most_layers
from runner.plan.flops import ModelSize

_SIDE_CUDA, _SIDE = 8192, 1024  # of the square matrices: 1.1 TFLOP a product, or 2 GFLOP


def model_size(model: Any) -> ModelSize | None:
    """The size of a model, 4-bit weights counted unpacked; None for one with experts, of which a token
    takes some."""
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
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
    width = of_most_layers(config, "head_dim") or config.hidden_size // config.num_attention_heads
    return ModelSize(
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
