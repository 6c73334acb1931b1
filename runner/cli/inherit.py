"""What a command with ``adapter=`` takes over from the run that made the adapter, as options of the groups.

Each becomes an ordinary choice in front of the user's own overrides (``model=of-adapter``), so that anything
given on the command line wins, and the composed config says where its values are from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from runner.config.adapters import Adapter, find_adapter
from runner.config.objective import Objectives
from runner.core.errors import ConfigError
from runner.core.yaml_reader import parse_yaml, read_yaml

OPTION = "of-adapter"
# What the shape of a LoRA adapter is; the run's own section may say otherwise, where PEFT converted it.
_SHAPE = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save")


def inherited(
    overrides: Iterable[str], folders: Iterable[Path], objectives: Objectives
) -> tuple[dict[str, Any], list[str]]:
    """The groups that ``adapter=`` fills, each with its values, and other overrides that belong to them.

    Groups which the command line chooses, or an experiment in one of the config ``folders``, are left alone.
    A recipe that does not train also takes the run's rows, with the seed that split them.
    """
    typed = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    adapter = _adapter(typed.get("adapter", ""))
    if adapter is None:
        return {}, []
    trains = typed.get("recipe", "sft") in objectives
    groups = _groups(adapter)
    if trains:
        groups.pop("data", None)
    files = [folder / "experiment" / f"{typed.get('experiment')}.yaml" for folder in folders]
    chosen = {*typed, *(group for file in files for group in _chosen_in(file))}
    groups = {name: values for name, values in groups.items() if name not in chosen}
    drawn = groups.get("model", {}).get("weights") == "random"
    return groups, list(_more(adapter, typed)) if drawn or not trains else []


def _more(adapter: Adapter, typed: dict[str, str]) -> Iterator[str]:
    """What random weights and the split of the rows also depend on, and in what the adapter was trained."""
    trainer = adapter.sections.get("trainer") or {}
    kept = {"seed": adapter.sections.get("seed", 0)}
    kept |= {f"trainer.{key}": trainer[key] for key in ("precision", "max_length") if key in trainer}
    for key, value in kept.items():
        if key not in typed:
            yield f"{key}={'null' if value is None else value}"


def _chosen_in(file: Path) -> set[str]:
    """The groups for which an experiment's file chooses an option."""
    try:
        values = read_yaml(file)
    except (OSError, ValueError, yaml.YAMLError):
        return set()  # composing it says why
    defaults = values.get("defaults", []) if isinstance(values, dict) else []
    names = [str(name) for entry in defaults if isinstance(entry, dict) for name in entry]
    return {name.removeprefix("override").strip().strip("/") for name in names}


def _adapter(given: str) -> Adapter | None:
    """The first adapter of an override's value; None where there is none, which is reported later."""
    try:
        value = parse_yaml(given)  # quotes and lists are written as in YAML
        first = value[0] if isinstance(value, list) else value
        return find_adapter(str(first)) if first else None
    except (ConfigError, yaml.YAMLError, IndexError):
        return None


def _groups(adapter: Adapter) -> dict[str, Any]:
    sections = adapter.sections
    groups = {name: sections.get(name) for name in ("model", "quantization", "lora", "template", "data")}
    shape = adapter.config
    if not groups["model"]:
        groups["model"] = adapter.base.get("model") or {"path": shape.get("base_model_name_or_path")}
    if shape.get("peft_type") == "LORA":
        kept = {key: shape[key] for key in _SHAPE if shape.get(key) is not None}
        where = groups["lora"] or {"target_modules": _sorted(shape.get("target_modules"))}
        groups["lora"] = where | {"_target_": "peft.LoraConfig", "init_lora_weights": True, **kept}
    return {name: values for name, values in groups.items() if values is not None}


def _sorted(targets: Any) -> Any:
    return sorted(targets) if isinstance(targets, list) else targets
