"""Compose the run config with Hydra, find every error in it, and freeze it into plain objects.

Only this room, the entry, ``runner.sweep.hydra_cells`` and the launcher in ``runner/plugins`` know Hydra and
OmegaConf.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.cli import chain_plans, chain_stages, compose, inherit
from runner.cli import help as help_text
from runner.cli.axes import Axis, axes_of, check_axes, walk, zip_lists
from runner.cli.command import SAVED_NAME, Command, check_overrides, parse
from runner.cli.hydra_rules import (
    SUBDIR,
    check_classes,
    check_direction,
    check_sweep_dir,
    check_system,
    is_packed,
)
from runner.cli.merged import merged_notes
from runner.cli.plain import plain_values
from runner.cli.primary_config import config_issues
from runner.cli.saved_config import escaped, saved_node
from runner.cli.slurm_rules import check_slurm
from runner.cli.sweeper import repeatable
from runner.config.checks import check_config
from runner.config.objective import Objectives
from runner.config.origins import Origins
from runner.config.parallel_rules import check_in_sweep
from runner.config.settings import LIBRARY_SECTIONS, OWN_SECTIONS, RunConfig
from runner.config.sweep_rules import unused
from runner.core.errors import ConfigError, Issue
from runner.core.folder_names import folder_name
from runner.core.paths import CONFIG_DIR

__all__ = ["Checked", "Command", "check", "freeze", "parse", "register"]


def register(command: Command | None = None) -> None:
    """Store the root node that lets library sections take any field without ``+``, and a saved config.

    A node made with ``struct: False`` stays open inside Hydra's closed config (tried on Hydra 1.3.8);
    this module checks the keys afterwards, all at once and with suggestions.
    """
    command = command or Command([], informational=True)
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    root = OmegaConf.create(
        {
            "defaults": [{"override /hydra/launcher": "packed"}],
            "hydra": {
                "run": {"dir": "."},
                "sweep": {
                    "dir": "${first:${output_dir},'outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}-sweep'}",
                    "subdir": SUBDIR,
                },
                "output_subdir": None,
                "job": {"chdir": False},
                "help": {"template": help_text.template(command) if command.informational else ""},
            },
        }
    )
    for item in dataclasses.fields(RunConfig):  # which a root config of one's own may leave out
        if item.default is not dataclasses.MISSING:
            root[item.name] = item.default
    for section in (*OWN_SECTIONS, *LIBRARY_SECTIONS):
        root[section] = OmegaConf.create({}, flags={"struct": False})
    ConfigStore.instance().store(name="runner", node=root)
    for group, values in command.inherited.items():
        options = OmegaConf.create(escaped(values))
        files = json.dumps(command.inherited_files.get(group, []))  # by which a value's origin is found
        ConfigStore.instance().store(group=group, name=inherit.OPTION, node=options, provider=files)
    if command.saved:
        node = saved_node(command)
        ConfigStore.instance().store(name=SAVED_NAME, node=node, provider=str(command.saved))


class Checked(NamedTuple):
    """The configs of a command that is right: one, or of a sweep one for every value of every axis.

    ``overrides`` are those of the one run, as typed, without those that are for Hydra. ``command`` is the one
    for Hydra to run, of a sweep; ``notes`` are to be said of it.
    """

    configs: list[RunConfig]
    multirun: bool
    overrides: list[str]
    command: Command
    notes: list[str]


def check(command: Command) -> Checked:
    """Compose and check every config that the command would run; of a sweep, every value of every axis.

    Raises ``ConfigError`` with all issues.
    """
    issues = [*command.issues, *config_issues(command)]
    if any(issue.where.startswith("--config") for issue in issues):
        raise ConfigError(issues)
    try:
        register(command)
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([*issues, compose.blame("config", error, command)]) from error
    with compose.started(command):
        notes: dict[str, None] = {}
        configs, completed = _check_cells(command, issues, notes)
    if issues:
        raise ConfigError(issues)
    return Checked(configs, completed.multirun, list(HydraConfig.get().overrides.task), completed, [*notes])


def check_shown(command: Command) -> None:
    """Refuse to show help over a config that would run code: Hydra sets up its logging for that, too."""
    if command.folders == [CONFIG_DIR] and command.saved is None:
        return
    register(command)
    with compose.started(command):
        composed, _ = compose.compose(command, [])
    if composed is not None and (issues := list(check_classes(composed))):
        raise ConfigError(issues)


def _check_cells(
    command: Command, issues: list[Issue], notes: dict[str, None]
) -> tuple[list[RunConfig], Command]:
    """The configs of the run, or of each value of each axis, and the command with what files say of a sweep;
    what is wrong with them joins ``issues``, what is to be said of them ``notes``."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides, more = check_overrides(command, parser, command.overrides)
    first = compose.compose(command, next(walk(overrides, command.multirun)))
    if (completed := _with_file_settings(command, first[0])) != command:
        command = completed
        overrides, more = check_overrides(command, parser, command.overrides)
        first = compose.compose(command, next(walk(overrides, command.multirun)))
    issues += more
    if command.multirun:
        command = repeatable(command, overrides, first[0])
    if texts := _file_axes(command, overrides, first, issues):
        axes, more = check_overrides(command, parser, texts)
        issues += more
        overrides = [*axes, *overrides]
        first = compose.compose(command, next(walk(overrides, command.multirun)))
    lists: list[list[str]] = []
    if command.multirun and first[0] is not None:
        values = plain_values(first[0], Origins([], [], list), [])
        settings = values.get("sweep") or {}
        lists = zip_lists(settings.get("zip")) if isinstance(settings, dict) else []
        issues += check_axes(axes_of(overrides), settings, command.sweeper)
        issues += check_direction(first[0], values, command.objectives)
        issues += check_sweep_dir(first[0])
        issues += check_system(first[0])
    configs: list[RunConfig] = []
    names: list[str] = []
    left_out: set[str] = set()
    typed = {str(item.input_line) for item in overrides}
    keys = {item.key_or_group for item in overrides}
    for cell in walk(overrides, command.multirun, lists):
        kept = [text for text in cell if text not in left_out]
        composed, found = first or compose.compose(command, kept)
        first = None
        left_out |= {issue.where for issue in found}
        if composed is not None:
            mappings = parser.parse_overrides([text for text in kept if "{" in text and text not in left_out])
            layers = partial(compose.layers, composed.hydra)
            notes |= dict.fromkeys(merged_notes(composed, mappings, keys, layers))
        try:
            frozen = freeze(composed, command.objectives, command.multirun) if composed is not None else None
        except ConfigError as error:
            found = [*found, *error.issues]
        else:
            name = " ".join(text for text in cell if text not in typed) or "the run"
            if frozen in configs:
                found.append(_same_run(name, names[configs.index(frozen)], axes_of(overrides)))
            configs += [frozen] if frozen else []
            names += [name] if frozen else []
        issues += [issue for issue in found if issue not in issues]
    return configs, command


def _same_run(name: str, other: str, axes: Mapping[str, Axis]) -> Issue:
    """The issue of two cells of a sweep; where they are called alike, with the values that are equal."""
    same = f"this one and {other}"
    if name == other:
        equal = "; ".join(f"{key}={' and '.join(axis.equal)}" for key, axis in axes.items() if axis.equal)
        same = f"by equal values of {equal}"
    return Issue(name, f"two cells of the sweep are the same run, {same}")


def freeze(composed: DictConfig, objectives: Objectives, multirun: bool = False) -> RunConfig:
    """Turn a composed config (with its ``hydra`` node) into a checked ``RunConfig``.

    ``multirun`` says that it is a cell of a sweep, as far as the config does not say so itself. Raises
    ``ConfigError`` with every issue found, each with the file or override it came from.
    """
    hydra = composed.hydra
    typed = OmegaConf.to_container(hydra.overrides.task)  # as typed: interpolations are not resolved
    origins = Origins(typed, hydra.runtime.choices, lambda: compose.layers(hydra))  # type: ignore[arg-type]
    issues: list[Issue] = []
    values = plain_values(composed, origins, issues)
    for key in ("hydra.run.dir", "hydra.output_subdir"):
        if OmegaConf.select(composed, key) in (".", None):
            continue
        if (where := origins.where(key)) != key:
            issues.append(Issue(where, f"{key} is decided elsewhere", "set output_dir"))
        else:
            where = f"{hydra.job.config_name}.yaml"
            message = "the base of the runner is missing"
            issues.append(Issue(where, message, "start its defaults list with: - runner"))
            break
    issues += check_classes(composed)
    # a value that could not be resolved is missing below: reported once
    named = {issue.where for issue in issues}
    issues += [issue for issue in check_config(values, origins, objectives) if issue.where not in named]
    issues += chain_plans.check_no_chain(values, origins, hydra, partial(compose.layers, hydra), objectives)
    several = multirun or hydra.mode == RunMode.MULTIRUN
    issues += check_slurm(composed, several)
    issues += check_in_sweep(values, origins) if several else ()
    if not several:
        issues += unused(values, origins, "without -m", "add -m")
    elif not is_packed(composed):
        launcher = hydra.runtime.choices.get("hydra/launcher")
        issues += unused(values, origins, f"with hydra/launcher={launcher}", "leave hydra/launcher out")
    if issues:
        raise ConfigError(issues)
    if values["recipe"] == "chain":
        values["stages"] = chain_stages.complete(values["stages"], values, hydra, compose.layers(hydra))
    return RunConfig.of(values)


def _first(*values: Any) -> Any:
    """The first value that is not null."""
    return next((value for value in values if value is not None), None)


def _with_file_settings(command: Command, composed: DictConfig | None) -> Command:
    """The command with what files say about a sweep: that it is one, and who chooses the values."""
    if composed is None:
        return command
    typed = [text.partition("=")[2] for text in command.overrides if text.startswith("hydra/sweeper=")]
    sweeper = [*typed, str(composed.hydra.runtime.choices.get("hydra/sweeper") or "basic")][0]
    multirun = command.multirun or (composed.hydra.mode == RunMode.MULTIRUN and not command.shown)
    return dataclasses.replace(command, multirun=multirun, sweeper=sweeper)


def _file_axes(
    command: Command, overrides: list[Override], first: compose.Composed, issues: list[Issue]
) -> list[str]:
    """The sweep that a file holds in ``hydra.sweeper.params``, less the keys given on the command line."""
    params = OmegaConf.select(first[0], "hydra.sweeper.params") if first[0] is not None else None
    if not params or command.shown:
        return []
    if not command.multirun:
        keys = ", ".join(map(str, params))
        issues.append(
            Issue(
                "hydra.sweeper.params",
                f"a file holds a sweep over {keys}",
                "add -m to run it, or mode: MULTIRUN beside the sweeper in the file",
            )
        )
        return []
    given = {item.key_or_group for item in overrides}
    return [f"{key}={value}" for key, value in params.items() if key not in given]
