"""Which base model it is, by digest: equal shapes are not enough to put an adapter on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.atomic import sha256_of
from runner.core.remembered import digest_of_files

if TYPE_CHECKING:
    import torch

    from runner.models.model import Base

# Parts of a config that say where and by what it was written, not what the model is.
_PASSING = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache")


def base_identity(base: Base, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Digests of the base's config and weights, and its vocabulary's size.

    Random weights are known by what draws them: architecture, ``seed``, ``dtype`` and kind of device.
    """
    from runner.models.model import device

    facts = {key: value for key, value in base.config.to_dict().items() if key not in _PASSING}
    text = json.dumps(facts, sort_keys=True, default=str)
    identity: dict[str, Any] = {
        "config": sha256_of(text),
        "vocabulary": int(base.config.get_text_config().vocab_size),
    }
    if base.folder is None:
        drawn = f"seed {seed}, {str(dtype).removeprefix('torch.')}, {device().type}"
        identity["weights"] = f"random:{base.settings.architecture}, {drawn}"
    else:
        identity["weights"] = weights_digest(base.folder)
    return identity


def weights_digest(folder: Path) -> str:
    """``xxh3:HEX`` over a model folder's weight files, by name and content."""
    return digest_of_files(file for kind in ("*.safetensors", "*.bin") for file in sorted(folder.glob(kind)))
