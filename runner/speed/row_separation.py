"""Whether a model keeps rows apart that lie side by side in one line, found out without weights.

transformers is told where rows begin by ``position_ids``, of which it makes the mask of an attention. Models
whose own code does not hand them on to the mask (gpt-oss, Granite 4) let a row attend to the rows before it,
and layers that carry a state along the line (linear attention, Mamba, short convolutions) know no mask at
all: most raise an error in the first step where the kernels are missing that can be told, the others go on.
"""

from __future__ import annotations

from typing import Any

from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.models.base import Base
from runner.models.empty_model import empty_model


def check_packing(config: RunConfig, base: Base) -> list[str]:
    """Refuse to put rows side by side where the model would look across them; returns warnings.

    Raises ``ConfigError``.
    """
    if config.trainer.get("eval_packing") and not config.trainer.get("packing"):
        # TRL 1.16 tells its collator of packed rows by trainer.packing alone
        message = "held-out rows would be read behind the rows before them in their line"
        raise ConfigError(Issue("trainer.eval_packing", message, "trainer.packing=true, or leave it out"))
    key = next((key for key in ("packing", "padding_free") if config.trainer.get(key)), None)
    if key is None:
        return []
    if config.trainer.get("packing_strategy") == "wrapped":
        return ["trainer.packing_strategy=wrapped: every row is read behind the rows before it in its line"]
    if base.settings.trust_remote_code and base.folder is not None:
        reason = f"the modelling code that comes with {base.settings.path} may not separate rows"
    else:
        reason = mixes_rows(base)
    if reason:
        issue = Issue(f"trainer.{key}", reason, f"trainer.{key}=false: rows that are padded are independent")
        raise ConfigError(issue)
    return []


def mixes_rows(base: Base) -> str | None:
    """Why a row of this model would depend on the rows beside it in its line, None where it does not.

    Needs a model that transformers has the code of.
    """
    if reason := carries_state(empty := empty_model(base)):
        return reason
    # flash attention is told where rows end, and reads no mask
    if "flash" in str(base.settings.attn_implementation) or _masks_by_position(empty):
        return None
    return (
        f"{type(empty).__name__} makes no mask of where rows begin, so that each attends to those before it"
    )


def carries_state(model: Any) -> str | None:
    """Which layers carry what a row left along to the row behind it, as a reason; None where none do."""
    from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING as MASKS
    from transformers.masking_utils import create_recurrent_attention_mask as of_padding

    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if kinds is None:
        found = ["recurrent"] if getattr(type(model), "_is_stateful", False) else []
    else:
        makers = {kind: MASKS.get(kind) for kind in kinds}
        found = sorted(
            kind
            for kind, maker in makers.items()
            if of_padding in (maker.values() if isinstance(maker, dict) else (maker,))
        )
    if not found:
        return None
    return (
        f"{' and '.join(found)} layers of {type(model).__name__} carry a state from a row to the one behind"
    )


class _Reached(Exception):
    """Ends a pass that has shown what it was for."""


def _masks_by_position(model: Any) -> bool:
    """Whether a model without weights makes masks of ``position_ids``, seen in a pass to its layers."""
    import torch
    from transformers import masking_utils

    from runner.speed.layers import decoder_layers

    seen: list[bool] = []

    def look(*_: Any, **__: Any) -> None:
        seen.append(True)
        raise _Reached

    def stop(*_: Any) -> None:
        raise _Reached

    decoder = model.get_decoder()
    decoder.config.pad_token_id = None  # or GPT-2 looks for it among the tokens, to warn
    hooks = [layer.register_forward_pre_hook(stop) for layer in decoder_layers(decoder)]
    before, masking_utils.find_packed_sequence_indices = masking_utils.find_packed_sequence_indices, look
    try:
        tokens = torch.zeros(1, 4, dtype=torch.long, device="meta")
        decoder(input_ids=tokens, position_ids=tokens, use_cache=False)
    except _Reached:
        pass
    except (RuntimeError, TypeError, NotImplementedError):
        return False  # takes no position_ids
    finally:
        masking_utils.find_packed_sequence_indices = before
        for hook in hooks:
            hook.remove()
    return bool(seen)
