"""The architecture that ``model`` names, from what is on this machine, or from the hub's ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config.settings import ModelSettings
from runner.core.errors import ConfigError, Issue
from runner.core.paths import ARCHITECTURES, CONFIG_DIR
from runner.core.yaml_reader import read_yaml
from runner.models.conversion.published import native_facts
from runner.models.hub import config_file
from runner.models.locate import find_model, is_hub_name
from runner.plan.architecture import Architecture
from runner.plan.families import from_facts


def find_architecture(settings: ModelSettings) -> Architecture:
    """The architecture of a model, of which no weights are fetched.

    That of a model option of this repository is in ``runner/models/architectures``, that of a folder in its
    ``config.json``, of any other name in the one file that is fetched from the hub. A GGUF file is converted,
    as for training. Raises ``ConfigError``.
    """
    facts = find_facts(settings)
    found = from_facts(facts)
    if found is not None:
        return found
    from runner.plan.built import from_model

    return from_model(facts)


def find_facts(settings: ModelSettings) -> Mapping[str, Any]:
    """The ``config.json`` of a model, found as ``find_architecture`` does. Raises ``ConfigError``."""
    path = str(settings.path)
    if settings.weights == "random":
        return _read(ARCHITECTURES / f"{settings.architecture}.json")
    local = Path(path).expanduser()
    if local.is_dir():
        inner = local / "model"  # of a run that left a whole model
        whole = (local / "run.json").is_file() and (inner / "config.json").is_file()
        file = (inner if whole else local) / "config.json"
        if not file.is_file():
            find_model(path)  # says what is missing
        return _read(file)
    if settings.architecture and path == _path_of_option(settings.architecture):
        return _read(ARCHITECTURES / f"{settings.architecture}.json")
    if local.exists() or not is_hub_name(path):
        return _read(find_model(path, settings.revision).folder / "config.json")
    return _read(config_file(path, settings.revision))


def _path_of_option(architecture: str) -> str | None:
    """The model whose architecture is in this repository under a name, as its option says."""
    file = CONFIG_DIR / "model" / f"{architecture}.yaml"
    return read_yaml(file).get("path") if file.is_file() else None


def _read(file: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"), object_hook=_special_float)
    except (OSError, ValueError) as error:
        raise ConfigError(Issue(str(file), f"cannot be read as JSON: {error}")) from error
    if not isinstance(facts, dict) or "model_type" not in facts:
        raise ConfigError(Issue(str(file), "names no model_type", "a config.json of transformers has one"))
    return native_facts(facts, file)


def _special_float(value: dict[str, Any]) -> Any:
    """What transformers writes for a number that JSON has none for: ``{"__float__": "Infinity"}``."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value
