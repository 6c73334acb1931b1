"""What the stages of a chain have from the chain: options and values of its files, and the words typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.cli.command import SAVED_NAME
from runner.cli.inherit import OPTION
from runner.config.origins import Layer
from runner.config.recipes.chain_rules import EVERY, OF_THE_CHAIN, key_of
from runner.core.errors import ConfigError, Issue
from runner.core.hydra_quoting import override_value
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml


def complete(
    stages: Mapping[str, list[str]], values: dict[str, Any], hydra: DictConfig, layers: Sequence[Layer]
) -> dict[str, list[str]]:
    """The stages with what all of them have from the chain, as the words of ``EVERY``.

    These are the options that the chain's files choose, the ``values`` that they set, and last the words of
    the command line. ``hydra`` is the ``hydra`` node of the composed chain, ``layers`` its files. Raises
    ``ConfigError`` for a word of the command line that every stage sets itself.
    """
    every: Any = OmegaConf.to_container(hydra.overrides.task)
    typed = [text for text in every if _is_of_stages(text)]
    if issues := [
        Issue(text, f"has no effect: every stage sets {key_of(text)} itself", "change it in stages")
        for text in typed
        if all(key_of(text) in map(key_of, words) for name, words in stages.items() if name != EVERY)
    ]:
        raise ConfigError(issues)
    earlier = [*_of_files(values, hydra, layers), *stages.get(EVERY, ()), *typed]
    common = {key_of(text): text for text in earlier}  # the last one of each key
    own = {name: words for name, words in stages.items() if name != EVERY}
    return {EVERY: list(common.values()), **own} if common else own


def _is_of_stages(text: str) -> bool:
    return key_of(text).partition(".")[0] not in OF_THE_CHAIN and not text.endswith(f"={OPTION}")


def _of_files(values: dict[str, Any], hydra: DictConfig, layers: Sequence[Layer]) -> Iterator[str]:
    defaults = read_yaml(CONFIG_DIR / "config.yaml")["defaults"]
    usual = {
        group: option
        for default in defaults
        if isinstance(default, dict)
        for group, option in default.items()
        if " " not in group and group not in OF_THE_CHAIN
    }
    for group, option in hydra.runtime.choices.items():
        if group in usual and option not in (usual[group], OPTION):
            yield f"{group}={override_value(option)}"
    keys: dict[str, None] = {}
    packaged = {*usual, "recipe", "trainer_model", SAVED_NAME}  # what a saved chain sets is in its stages
    for layer in layers:
        if layer.name.partition("/")[0] not in packaged and layer.file != CONFIG_DIR / "config.yaml":
            keys |= dict.fromkeys(_keys(layer))
    for key in keys:
        section, _, name = key.partition(".")
        inside = values if not name else values.get(section) or {}
        if section not in OF_THE_CHAIN and (name or section) in inside:
            yield f"{key}={override_value(inside[name or section])}"


def _keys(layer: Layer) -> Iterator[str]:
    """The keys that a file sets, ``KEY`` or ``SECTION.KEY``."""
    content = read_yaml(layer.file)
    for part in reversed(layer.package.split(".") if layer.package else []):
        content = {part: content}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            yield from (f"{key}.{name}" for name in value)
        else:
            yield str(key)
