"""How large the updates of LoRA adapters are, and how far they point the same way, layer by layer.

The update of a layer is ``scale * B @ A``. Norms and inner products (Frobenius) of all layers together
come from products of rank size, ``<B1 A1, B2 A2> = tr((B1^T B2) (A2 A1^T))``: no update is ever whole in
memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer


def inner_products(model: Any, names: list[str]) -> list[list[float]]:
    """Inner products of the updates of all pairs of a PEFT model's LoRA adapters."""
    products = torch.zeros(len(names), len(names), dtype=torch.float64)
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        factors = [_factors(layer, name) for name in names]
        for row, one in enumerate(factors):
            for column, other in enumerate(factors[: row + 1]):
                if one is not None and other is not None:
                    inner = (one[1].T @ other[1]) * (one[0] @ other[0].T)
                    products[row, column] += inner.sum().double()
                    products[column, row] = products[row, column]
    return products.tolist()


def combined_norm(products: list[list[float]], weights: list[float]) -> float:
    """The norm of the weighted sum of updates with these inner products."""
    rows = range(len(weights))
    square = sum(weights[i] * weights[j] * products[i][j] for i in rows for j in rows)
    return math.sqrt(max(square, 0.0))


def cosine(products: list[list[float]], one: int, other: int) -> float:
    """How far two updates point the same way: 1 equal up to size, 0 unrelated."""
    size = math.sqrt(products[one][one] * products[other][other])
    return products[one][other] / size if size else 0.0


def _factors(layer: LoraLayer, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A, of shape (rank, inputs), and scale times B, of shape (outputs, rank), of one adapter in a layer."""
    pairs: Any = ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B))
    for first, second in pairs:
        if name in first:
            a, b = (getattr(each[name], "weight", each[name]).detach().float() for each in (first, second))
            return a.flatten(1), b.flatten(1) * layer.scaling[name]
    return None
