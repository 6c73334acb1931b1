"""How long a row may be: what the model's positions hold, with RoPE scaling where the model has it."""

from __future__ import annotations

from typing import Any

from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue


def row_limit(config: RunConfig, model: Any) -> int | None:
    """Tokens at which a row is cut: ``trainer.max_length``; of null what the model's positions hold.

    ``model`` is its config. Raises ``ConfigError`` for a length beyond the positions, where a model with
    learnt ones crashes and one with RoPE reads what it was never trained to read.
    """
    given, room = config.trainer.get("max_length", 1024), positions(model)
    if given is None or room is None or given <= room:
        return room if given is None else given
    message = f"trainer.max_length={given} is beyond the {room} positions of the model"
    hint = f"trainer.max_length={room}, or a model whose config.json scales RoPE (rope_parameters)"
    raise ConfigError(Issue("trainer.max_length", message, hint))


def positions(model: Any) -> int | None:
    """The positions that a model's config allows for; None where it names no number."""
    config = model.get_text_config()
    room = getattr(config, "max_position_embeddings", None)
    if room is None:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # some models scale each kind of attention layer in its own way: the least scaled one decides
    kinds = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    return min(max(room, _scaled(kind, room)) for kind in kinds)


def _scaled(rope: dict[str, Any], room: int) -> int:
    """Positions that a way of scaling makes of those that the model was pretrained with."""
    before = rope.get("original_max_position_embeddings") or room
    return int(float(rope.get("factor") or 1) * before)
