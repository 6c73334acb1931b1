"""Which base model it is, by digest: equal shapes are not enough to put an adapter on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from runner.core.atomic import sha256_of, write_atomically, xxh3_of_file
from runner.models.locate import cache_dir

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
    """``xxh3:HEX`` over a model folder's weight files, by name and content.

    Remembered by path, size and time of change, as tens of gigabytes take seconds even so.
    """
    files = [file for kind in ("*.safetensors", "*.bin") for file in sorted(folder.glob(kind))]
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.name}\0{_file_digest(file)}\0".encode())
    return f"xxh3:{digest.hexdigest()}"


def _file_digest(file: Path) -> str:
    status = file.stat()
    key = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    memory = cache_dir() / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.txt"
    if memory.is_file():
        return memory.read_text(encoding="utf-8")
    digest = xxh3_of_file(file)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, digest)
    except OSError:
        pass  # a cache that cannot be written costs time only
    return digest
