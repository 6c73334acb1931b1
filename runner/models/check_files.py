"""Whether a model's files can be used: readable, whole, and without code that they would load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from runner.core.errors import ConfigError, Issue, RunnerError
from runner.models.hub import INDEX, shards

# What transformers reads of a folder, each an object of JSON; the first must be there.
_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    INDEX,
)
# Keys of config.json, at any depth, whose value may name compiled code: a repository of the hub (OWNER/NAME).
_KERNELS = ("attn_implementation", "experts_implementation", "kernel")


def check_files(folder: Path, trust: bool) -> list[str]:
    """Check a model's folder without loading weights, and return a warning about code that is not run.

    ``trust`` is ``model.trust_remote_code``. Raises ``ConfigError`` with every file that is damaged, and
    for a config that names a kernel to load.
    """
    issues: list[Issue] = []
    found: dict[str, dict[str, Any]] = {}
    for name in _OBJECTS:
        if (folder / name).is_file():
            try:
                found[name] = read_object(folder / name)
            except ConfigError as error:
                issues += error.issues
    config = found.get("config.json", {})
    if not trust:
        issues += _kernels(folder / "config.json", config)
    issues += _damaged_weights(folder, found.get(INDEX, {}))
    if issues:
        raise ConfigError(issues)
    if not trust and any(
        found.get(name, {}).get("auto_map") for name in ("config.json", "tokenizer_config.json")
    ):
        return [
            f"{folder} brings code of its own, which is not run: the classes of transformers are used; "
            "model.trust_remote_code=true runs it"
        ]
    return []


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file of JSON. Raises ``ConfigError`` for a file that holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        empty = (
            "is empty" if file.is_file() and not file.stat().st_size else f"is not readable as JSON: {reason}"
        )
        raise ConfigError(Issue(str(file), empty, "a damaged file: fetch or write it again")) from error
    if not isinstance(values, dict):
        raise ConfigError(Issue(str(file), f"is not an object of JSON but {type(values).__name__}"))
    return values


@contextmanager
def tensors_only(folder: Path) -> Iterator[None]:
    """Explain why pickled weights are not loaded: the libraries take tensors from them, and run nothing."""
    try:
        yield
    except UnpicklingError:
        # the library's own message says how to run it all the same
        message = (
            f"a pickled file in {folder} holds something that is not a tensor and may be code; it was not run"
        )
        raise RunnerError(f"{message}\n  ask for the weights as safetensors") from None


def _kernels(file: Path, config: dict[str, Any]) -> Iterator[Issue]:
    for key, value in _leaves(config):
        name = key.removeprefix("_").removesuffix("_internal")
        if "/" in value and any(kernel in name for kernel in _KERNELS):
            message = f"{key}={value} would load compiled code from the hub"
            yield Issue(
                str(file), message, "if you trust it: model.trust_remote_code=true on the command line"
            )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a value, each with the nearest key above it; of a dictionary below such a key, all."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            below = key if any(kernel in key for kernel in _KERNELS) else str(name)
            yield from _leaves(item, below)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)


def _damaged_weights(folder: Path, index: dict[str, Any]) -> Iterator[Issue]:
    """Safetensors whose header does not fit their size, and tensors of the index that no shard has."""
    from safetensors import SafetensorError, safe_open

    named = shards(folder)
    files = sorted(folder / name for name in named) if named else [folder / "model.safetensors"]
    held: dict[str, set[str]] = {}
    for file in files:
        if file.suffix != ".safetensors" or not file.is_file():
            continue
        try:
            with safe_open(file, "pt") as opened:
                held[file.name] = set(opened.keys())
        except (SafetensorError, OSError) as error:
            message = f"is damaged: {str(error).partition(chr(10))[0]}"
            yield Issue(str(file), message, "fetch it again; a download may have been interrupted")
    absent = [
        f"{tensor} in {file}"
        for tensor, file in (index.get("weight_map") or {}).items()
        if file in held and tensor not in held[file]
    ]
    if absent:
        message = f"names {len(absent)} tensors that are not where it says, {absent[0]} first"
        yield Issue(str(folder / INDEX), message)
