"""Fetch a model from the hub into the hub client's own cache, or find it there."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Issue

PATIENCE = 6.0  # seconds until a hub or package index that does not answer is given up
INDEX = "model.safetensors.index.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# In the order in which transformers looks for them; an index names its shards.
_WEIGHTS = (
    "model.safetensors",
    INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def offline() -> bool:
    """Whether the environment forbids the network."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in _OFFLINE)


def snapshot(name: str, revision: str | None = None) -> tuple[Path, list[str]]:
    """The folder of a hub model, named by its commit, and warnings.

    A commit that is cached is taken from there; for a branch or tag the hub is asked for the newest, and the
    cache is used, with a warning, if it does not give it. Raises ``ConfigError`` if neither has the model.
    """
    cached = _cached(name, revision)
    if cached is not None and (offline() or _COMMIT.fullmatch(revision or "")):
        return cached, []
    hint = f"where there is a network: hf download {name}" + (f" --revision {revision}" if revision else "")
    if offline():
        message = f"{name} is not in the hub's cache, and this machine is set to be offline"
        raise ConfigError(Issue("model.path", message, f"{hint}; or model.path=FOLDER"))
    try:
        return _download(name, revision), []
    except ConfigError:
        raise
    except Exception as error:  # the hub's client raises many kinds, all of which mean: not to be had
        reason, advice = _explain(error, revision)
        if cached is not None:
            return cached, [f"{name}: {reason}; commit {cached.name} is used, from the cache"]
        hint = f"{advice or hint}; or model.path=FOLDER, or model.weights=random"
        raise ConfigError(
            Issue("model.path", f"{name!r} is not a folder here, and {reason}", hint)
        ) from error


def cached(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model that is in the hub's cache, whole; None where it is not."""
    try:
        return _cached(name, revision)
    except ConfigError:
        return None  # no name of the hub


def config_file(name: str, revision: str | None = None) -> Path:
    """The ``config.json`` of a hub model, the only file of it that is fetched.

    Raises ``ConfigError`` as ``snapshot`` does, which it is beside; a cached one is taken as it is.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:
        cached = None  # no name of the hub, which the snapshot says
    if isinstance(cached, str):
        return Path(cached)
    if offline() or cached is not None:
        return snapshot(name, revision)[0] / "config.json"
    try:
        _info(name, revision)  # asked first: the download tries an unreachable hub five times
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # the hub's client raises many kinds, all of which mean: not to be had
        reason, advice = _explain(error, revision)
        message = f"{name!r} is not a folder here, and {reason}"
        hint = f"{advice or f'hf download {name} config.json'}; or model.path=FOLDER, or model.weights=random"
        raise ConfigError(Issue("model.path", message, hint)) from error


def missing_files(folder: Path) -> list[str]:
    """Names of the files without which transformers cannot load the model in ``folder``."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        return [_WEIGHTS[0]]
    if weights.suffix != ".json":
        return []
    named = shards(folder)
    return sorted(name for name in named if not (folder / name).is_file()) if named else [weights.name]


def shards(folder: Path) -> set[str]:
    """The files that the index of a model's folder names; none where there is no index that can be read."""
    index = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    try:
        facts = json.loads(index.read_text(encoding="utf-8")) if index and index.suffix == ".json" else {}
        return {str(name) for name in facts["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers would load of a model's folder: of several kinds one."""
    named = shards(folder)
    single = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    return sorted(folder / name for name in named) if named else single[:1]


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError as error:
        message = f"{name!r} is not a folder here, and cannot be a name on the hub"
        raise ConfigError(Issue("model.path", message, "write OWNER/NAME, or a folder")) from error
    folder = Path(config).parent if isinstance(config, str) else None
    # an interrupted download leaves a folder with some of the files
    return folder if folder is not None and not missing_files(folder) else None


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    info = _info(name, revision)
    files = [entry.rfilename for entry in info.siblings or []]
    wanted = _wanted(files)
    if not any(file.endswith((".safetensors", ".bin")) for file in wanted):
        others = [file for file in files if file.endswith(".gguf")]
        hint = f"fetch one file, hf download {name} {others[0]}, and name it in model.path" if others else ""
        raise ConfigError(Issue("model.path", f"{name} holds no weights that transformers can load", hint))
    # by the name of the branch or tag, not by its commit: that is how it is found again offline
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def _info(name: str, revision: str | None) -> Any:
    """What the hub says of a model; ``TimeoutError`` where it does not answer."""
    from huggingface_hub import HfApi

    # a longer time-out of the client's own says that the hub is known to be slow
    patience = max(PATIENCE, float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 0))
    return within(patience, lambda: HfApi().model_info(name, revision=revision, timeout=patience))


def _wanted(files: list[str]) -> list[str]:
    """Files worth fetching: safetensors and what goes with them; pickled weights if there are no others."""
    top = [file for file in files if "/" not in file]
    weights = [file for file in top if re.fullmatch(r"model.*\.safetensors", file)]
    if not weights:
        weights = [file for file in top if re.fullmatch(r"pytorch_model.*\.bin", file)]
    return weights + [file for file in top if file.endswith(_BESIDE_WEIGHTS)]


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of ``call``, or ``TimeoutError``: the client's own begins anew for each address."""
    outcome: list[tuple[Any, Exception | None]] = []

    def work() -> None:
        try:
            outcome.append((call(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _explain(error: Exception, revision: str | None) -> tuple[str, str]:
    """Why the hub did not give a model, and what to do about it if that is known."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "it is gated", f"accept its licence on its page of the hub; then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private", f"check the name; if it is private, {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's model has no revision {revision!r}", "check model.revision"
    if status in (401, 403):
        return f"the hub refuses access ({status})", _LOG_IN
    if status is not None:
        return f"the hub answered {status}", ""
    if isinstance(error, TimeoutError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):
        return "the hub cannot be reached", ""
    return f"the download failed ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})", ""
