"""The config of a run folder: how it is written, and what it is when it is composed again."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.cli.command import SAVED_DEFAULTS, Command
from runner.cli.config_source import load_text
from runner.config.settings import RunConfig
from runner.config.trust import code_words
from runner.core.yaml_reader import read_text


def to_yaml(config: RunConfig) -> str:
    """The config of a run folder: complete, and composable again with ``--config-path``."""
    again = "python -m runner --config-path <this folder> --config-name config"
    header = (
        "# Everything this run was made from. To run it again:\n"
        f"# {' '.join([again, *map(shlex.quote, code_words(config))])}\n"
    )
    values = {**dataclasses.asdict(config), "output_dir": None}
    # OmegaConf's own writer quotes what its reader would take for a number
    return header + OmegaConf.to_yaml({"defaults": SAVED_DEFAULTS, **escaped(values)})


def saved_node(command: Command) -> DictConfig:
    """A saved config whose groups can be chosen again: an option on the command line replaces the section."""
    assert command.saved is not None
    node = load_text(read_text(command.saved), command.saved)
    named = {re.split(r"[=@]", text.lstrip("+~"))[0]: text.partition("=")[2] for text in command.overrides}
    chosen = [group for group in command.groups() if not named.get(group, "{").startswith("{")]
    for group in chosen:
        node.pop(group, None)
    front = [{group: None} for group in chosen if group != "experiment"]
    behind = [{group: None} for group in chosen if group == "experiment"]
    node.defaults = [
        *SAVED_DEFAULTS[:1],
        *front,
        *SAVED_DEFAULTS[1:2],
        *behind,
        *SAVED_DEFAULTS[2:],
    ]
    return node


def escaped(value: Any) -> Any:
    """Keep ``${...}`` inside a value as text, instead of an interpolation, when it is composed again."""
    if isinstance(value, str):
        if "${" not in value:
            return value
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, (list, tuple)) else value
