"""Have Hydra compose each choice of options once a command: configs that differ in values only are copies."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig


def compose_options_once(loader: Any) -> None:
    """Change how a command's ``ConfigLoaderImpl`` composes: the same configs, most of them sooner.

    For each cell of a sweep Hydra would read the files again and merge some 25 of them, 80 ms. Which files
    these are follows from the overrides that choose options and from Hydra's own; all others set values
    afterwards, in their order, and are set on a copy here.
    """
    loader._load_configuration_impl = _Options(loader).load


class _Options:
    """The configs of the options chosen so far, before any value is set in them.

    The first config of a command is composed by Hydra alone: most commands have no other.
    """

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self._loader, self._compose = loader, loader._load_configuration_impl
        self._first, self._parser = True, OverridesParser.create()
        self._repositories: dict[tuple[str, ...], CachingConfigRepository] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def load(
        self,
        config_name: str,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """In place of Hydra's ``_load_configuration_impl``."""
        first, self._first = self._first, False
        parsed = [] if first or run_mode != RunMode.RUN else self._parser.parse_overrides(overrides)
        if not parsed or any(each.is_sweep_override() for each in parsed):
            return self._compose(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        groups = self._groups(config_name, parsed)
        options = [each for each in parsed if _chooses(each, groups)]
        key = (config_name, *(str(each.input_line) for each in options))
        try:
            if key not in self._composed:
                self._composed[key] = self._compose(config_name, list(key[1:]), run_mode, from_shell)
        except Exception:  # of options that are wrong, or need a value that is set afterwards
            return self._compose(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        config = copy.deepcopy(self._composed[key])
        values = [each for each in parsed if not _chooses(each, groups)]
        self._loader._apply_overrides_to_config(values, config)
        _record(config, _own(parsed), _own(options))
        return config

    def _groups(self, config_name: str, parsed: Sequence[Override]) -> CachingConfigRepository:
        """The files of options in all folders that the overrides and the config itself have Hydra search."""
        searched = [str(each.input_line) for each in parsed if each.key_or_group == "hydra.searchpath"]
        key = (config_name, *searched)
        if key not in self._repositories:
            _, repository = self._loader._parse_overrides_and_create_caching_repo(config_name, searched)
            self._repositories[key] = repository
        return self._repositories[key]


def _chooses(override: Override, groups: CachingConfigRepository) -> bool:
    """Whether an override says which files are composed, by Hydra's own rule, or is for Hydra itself."""
    key = override.key_or_group
    is_dict = isinstance(override.value(), dict)
    return re.split("[./]", key)[0] == "hydra" or (not is_dict and groups.group_exists(key))


def _own(overrides: Sequence[Override]) -> list[Override]:
    """Those of the config's own keys, without Hydra's."""
    return [each for each in overrides if not each.is_hydra_override()]


def _record(config: DictConfig, overrides: list[Override], options: list[Override]) -> None:
    """Enter all overrides where Hydra has entered the ``options``, behind what files have put there."""
    job, entered = config.hydra.job, config.hydra.overrides.task
    style = job.config.override_dirname
    config.hydra.overrides.task = [
        *entered[: len(entered) - len(options)],
        *(each.input_line for each in overrides),
    ]
    job.override_dirname = get_overrides_dirname(
        overrides, style.exclude_keys, item_sep=style.item_sep, kv_sep=style.kv_sep
    )
