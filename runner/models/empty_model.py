"""The base's modules without weights, on torch's meta device: what it has, and what would fit it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.models.base import Base


def empty_model(base: Base, classes: list[str] | None = None, config: Any = None) -> Any:
    """The base's model without weights; with ``classes``, under a head with those outputs.

    ``config`` takes the place of the base's own, and is changed for ``classes``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM
    config = config or copy.deepcopy(base.config)
    if classes is not None:
        kind = AutoModelForSequenceClassification
        set_classes(config, classes, base.tokenizer.pad_token_id)
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=base.settings.trust_remote_code)


def set_classes(config: Any, classes: list[str], pad_token_id: int) -> None:
    """Give a config a head with one output for each of ``classes``."""
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config.pad_token_id = pad_token_id  # the last token that is no padding is read


def module_names(base: Base) -> dict[str, bool]:
    """Names of all modules, each with whether LoRA has a form for it; none of remote code."""
    from torch.nn import Conv1d, Conv2d, Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    if base.settings.trust_remote_code:
        return {}
    kinds = (Linear, Embedding, Conv1D, Conv1d, Conv2d)  # GPT-2 has Conv1D where others have Linear
    return {name: isinstance(module, kinds) for name, module in empty_model(base).named_modules() if name}
