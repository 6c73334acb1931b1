"""The decoder that a trainer's own loss is computed with, where the run and its model have one."""

from __future__ import annotations

from typing import Any

from runner.speed.decoder import FastDecoder
from runner.training.context import TrainerContext
from runner.training.token_loss import supports_chunked_loss


def fast_decoder(model: Any, context: TrainerContext) -> FastDecoder | None:
    """The decoder for ``token_logprobs``; None where the loss is the library's."""
    if not context.pieces.chunked_loss:
        return None
    if not supports_chunked_loss(model):
        context.warn("speed: the library's own loss: the model's head is not a plain frozen linear layer")
        return None
    return FastDecoder(model, context.pieces, context.warn)
