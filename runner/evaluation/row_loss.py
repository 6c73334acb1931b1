"""The held-out loss of a model, example by example and over loss tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from runner.data.labels import IGNORE, Encoded


def row_losses(
    model: Any,
    rows: Sequence[Encoded],
    batch_size: int,
    pad_token_id: int,
    autocast: torch.dtype | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[tuple[float, float]]:
    """Summed negative log-likelihood (nats) of the labelled tokens of each row, and their number.

    Rows go through the model sorted by length; only the logits of labelled tokens are taken to float32.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    found: dict[int, tuple[float, float]] = {}
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            with torch.inference_mode(), cast(model.device, autocast):
                sums = _batch([rows[index] for index in chosen], model, pad_token_id)
            found |= dict(zip(chosen, sums, strict=True))
            if on_batch:
                on_batch(len(chosen))
    finally:
        model.train(training)
    return [found[index] for index in range(len(rows))]


def cast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The autocast of a run's precision, or nothing."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def _batch(rows: list[Encoded], model: Any, pad: int) -> list[tuple[float, float]]:
    longest = max(len(row.input_ids) for row in rows)

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in values], device=model.device)

    ids = padded([row.input_ids for row in rows], pad)
    mask = padded([[1] * len(row.input_ids) for row in rows], 0)
    labels = padded([row.labels for row in rows], IGNORE)[:, 1:]
    # an adapter of the prompt puts virtual tokens in front, whose logits come along
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -longest:-1]
    sums = []
    for row, scores in zip(labels, logits, strict=True):
        trained = row != IGNORE
        loss = torch.nn.functional.cross_entropy(scores[trained].float(), row[trained], reduction="sum")
        sums.append((loss.item(), float(trained.sum().item())))
    return sums
