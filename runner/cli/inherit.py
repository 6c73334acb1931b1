"""What a command with ``adapter=`` takes over from the run that made the adapter, as options of the groups.

Each becomes an ordinary choice in front of the user's own overrides (``model=of-adapter``), so that anything
given on the command line wins, and the composed config says where its values are from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from runner.config.adapters import BASE_FILE, CONFIG_FILE, Adapter, find_adapter
from runner.config.objective import Objectives
from runner.core.errors import ConfigError
from runner.core.yaml_reader import parse_yaml, read_yaml

OPTION = "of-adapter"
# What the shape of a LoRA adapter is; the run's own section may say otherwise, where PEFT converted it.
File = tuple[str, str, list[str]]  # its path, the section it is placed in, and the keys that it sets
_SHAPE = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save")
# Keys that name another model than the chosen option does.
_OTHER_MODEL = ("model.path", "model.architecture")


def inherited(
    overrides: Iterable[str], folders: Iterable[Path], objectives: Objectives
) -> tuple[dict[str, Any], list[str], dict[str, list[File]]]:
    """The groups that ``adapter=`` fills, each with its values, other overrides that belong to them, and the
    files from which each group's values are, the strongest last.

    Groups which the command line chooses, or an experiment in one of the config ``folders``, are left alone.
    The run's rows come along where the recipe reads rows of that kind, with the seed that split them.
    """
    typed = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    adapter = _adapter(typed.get("adapter", ""))
    if adapter is None:
        return {}, [], {}
    chosen = {**options_of(typed.get("experiment"), folders), **typed}
    recipe = chosen.get("recipe", "sft")
    groups = _groups(adapter)
    groups["data"] = data = _rows(adapter, recipe, "data.path" in typed, objectives)
    groups = {name: values for name, values in groups.items() if name not in chosen and values is not None}
    drawn = groups.get("model", {}).get("weights") == "random"
    more = list(_more(adapter, typed)) if drawn or recipe not in objectives else []
    if recipe in objectives and "data" in groups and data and data.get("path"):
        more += _beside_rows(adapter, chosen, more)
    return groups, more, {name: list(_files(adapter, name, values)) for name, values in groups.items()}


def without_rate(overrides: Iterable[str], folders: Iterable[Path]) -> list[str]:
    """The override that leaves ``conf/trainer_model`` out, where that preset is for another model.

    A learning rate that a small model was found to need belongs to that model alone: it would take the place
    of an experiment's where ``model=`` replaces the model which the experiment names, and of every other
    model's where ``model.path`` names one in place of the preset's.
    """
    typed = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    of_experiment = options_of(typed.get("experiment"), folders)
    replaced = "model" in typed and "model" in of_experiment
    other = any(key in typed or key in of_experiment for key in _OTHER_MODEL)
    return ["~trainer_model"] if replaced or other else []


def _rows(adapter: Adapter, recipe: str, typed: bool, objectives: Objectives) -> dict[str, Any] | None:
    """The section ``data`` that a recipe takes over from an adapter's run; None leaves the recipe's own.

    The embedded rows, which are the default, are those of one task. They go with an adapter of that task
    only: for any other the path is left open, and has to be given. It is open, too, where it is ``typed``:
    what the run held out does not belong to other rows.
    """
    if recipe == "chat":
        return None  # reads none
    given = adapter.sections.get("data") or {}
    made = str(adapter.sections.get("recipe"))
    same = recipe not in objectives or (
        made in objectives and objectives[made].kind == objectives[recipe].kind
    )
    if given.get("path") and same and not typed:
        return given
    embedded = str(given.get("path")).startswith("embedded:orders")
    return None if embedded and not typed else {"path": None}


def _beside_rows(adapter: Adapter, chosen: dict[str, str], more: list[str]) -> Iterator[str]:
    """What goes with the rows of a run that is trained further: its batch size, and the seed of its split."""
    key = "trainer.per_device_train_batch_size"
    size = (adapter.sections.get("trainer") or {}).get(key.partition(".")[2])
    if size and not chosen.keys() & {key, "trainer", "experiment"}:
        yield f"{key}={size}"
    seed = f"seed={adapter.sections.get('seed', 0)}"
    if (adapter.sections.get("data") or {}).get("eval_split") and "seed" not in chosen and seed not in more:
        yield seed


def _more(adapter: Adapter, typed: dict[str, str]) -> Iterator[str]:
    """What random weights and the split of the rows also depend on, and in what the adapter was trained."""
    trainer = adapter.sections.get("trainer") or {}
    kept = {"seed": adapter.sections.get("seed", 0)}
    kept |= {f"trainer.{key}": trainer[key] for key in ("precision", "max_length") if key in trainer}
    for key, value in kept.items():
        if key not in typed:
            yield f"{key}={'null' if value is None else value}"


def options_of(experiments: str | None, folders: Iterable[Path]) -> dict[str, str]:
    """What the files of ``experiment=`` choose: options by group, ``recipe``, and the keys of ``model`` they
    set. Of several experiments (``-m experiment=a,b``) what any of them does."""
    names = [name.strip() for name in (experiments or "").split(",")]
    files = [folder / "experiment" / f"{name}.yaml" for name in names for folder in folders]
    return {group: option for file in files for group, option in _chosen_in(file).items()}


def _chosen_in(file: Path, depth: int = 9) -> dict[str, str]:
    """What an experiment's file chooses, or one that stands in its defaults list, which it overrides."""
    try:
        values = read_yaml(file)
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # composing it says why
    values = values if isinstance(values, dict) else {}
    defaults = values.get("defaults")
    chosen: dict[str, str] = {}
    for entry in defaults if isinstance(defaults, list) else []:
        if isinstance(entry, str) and entry != "_self_" and depth:
            name = entry.removeprefix("/experiment/")
            chosen = _chosen_in(file.parent / f"{name}.yaml", depth - 1) | chosen
        for name, option in entry.items() if isinstance(entry, dict) else ():
            chosen[str(name).removeprefix("override").strip().strip("/")] = str(option)
    model = values.get("model")
    chosen |= {f"model.{key}": str(value) for key, value in model.items()} if isinstance(model, dict) else {}
    return chosen | ({"recipe": str(values["recipe"])} if values.get("recipe") else {})


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


def _files(adapter: Adapter, group: str, values: dict[str, Any]) -> Iterator[File]:
    """The files that the values of a group are from."""
    section = adapter.sections.get(group)
    own = bool(section) and (group != "data" or values == section)
    if own and adapter.run:
        yield str(adapter.run / "config.yaml"), "", [group]
    if group == "lora":
        keys = _SHAPE if own else (*_SHAPE, "target_modules")
        yield str(adapter.folder / CONFIG_FILE), group, [f"{group}.{key}" for key in keys]
    if group == "model" and not own and adapter.base.get("model"):
        yield str(adapter.folder / BASE_FILE), "", [group]


def _sorted(targets: Any) -> Any:
    return sorted(targets) if isinstance(targets, list) else targets
