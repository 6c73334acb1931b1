"""Compose the run config with Hydra, find every mistake in it, and freeze it into plain objects.

Only this module and the entry know Hydra and OmegaConf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.checks import check_config
from runner.errors import Problem, Refused, nearest
from runner.origins import Origins
from runner.paths import CONFIG_DIR
from runner.settings import LIBRARY_SECTIONS, OWN_SECTIONS, RunConfig

TOP_LEVEL = tuple(item.name for item in dataclasses.fields(RunConfig))

# What a saved config.yaml needs in front of it to run again through the same command.
_RERUN_DEFAULTS = [
    "runner",
    {"override hydra/job_logging": "none"},
    {"override hydra/hydra_logging": "none"},
    "_self_",
]


@dataclass(frozen=True)
class Command:
    """A parsed command line: overrides as typed, and where the primary config stands."""

    overrides: list[str]
    config_dir: Path
    config_name: str
    extra_dir: Path | None = None
    multirun: bool = False
    informational: bool = False
    argv: list[str] = field(default_factory=list)


def register() -> None:
    """Store the root node that lets library sections take any field without ``+``.

    A node made with ``struct: False`` stays open inside Hydra's closed config (tried on Hydra 1.3.8); this
    module checks the keys afterwards, all at once and with suggestions.
    """
    root = OmegaConf.create({"hydra": {"run": {"dir": "."}, "output_subdir": None, "job": {"chdir": False}}})
    for section in (*OWN_SECTIONS, *LIBRARY_SECTIONS):
        root[section] = OmegaConf.create({}, flags={"struct": False})
    ConfigStore.instance().store(name="runner", node=root)


def parse(argv: list[str]) -> Command:
    """Read Hydra's command line; relative ``--config-path`` and ``--config-dir`` are taken from the current folder."""
    args = get_args_parser().parse_args(argv)
    config_dir = Path(args.config_path).resolve() if args.config_path else CONFIG_DIR
    extra_dir = Path(args.config_dir).resolve() if args.config_dir else None
    absolute = {
        str(raw): str(path)
        for raw, path in ((args.config_path, config_dir), (args.config_dir, extra_dir))
        if raw
    }
    return Command(
        overrides=args.overrides,
        config_dir=config_dir,
        config_name=(args.config_name or "config").removesuffix(".yaml"),
        extra_dir=extra_dir,
        multirun=bool(args.multirun),
        informational=bool(args.help or args.hydra_help or args.shell_completion or args.info),
        argv=[absolute.get(word, word) for word in argv],
    )


def check(command: Command) -> list[RunConfig]:
    """Compose and check every config that the command would run. Raises ``Refused`` with all problems."""
    register()
    overrides, problems = _check_overrides(command)
    configs: list[RunConfig] = []
    for cell in _cells(overrides, command.multirun):
        try:
            configs.append(freeze(_compose(command, cell)))
        except Refused as refused:
            problems += [problem for problem in refused.problems if problem not in problems]
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(
                Problem("config", str(error).splitlines()[0], "; ".join(str(error).splitlines()[1:3]))
            )
    if problems:
        raise Refused(problems)
    return configs


def freeze(composed: DictConfig) -> RunConfig:
    """Turn a composed config (with its ``hydra`` node) into a checked ``RunConfig``.

    Raises ``Refused`` with every problem found, each with the file or override it came from.
    """
    origins = Origins(composed.hydra)
    plain = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    try:
        values = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise Refused(Problem(origins.where(str(key)), str(error).splitlines()[0])) from error
    assert isinstance(values, dict)
    problems = check_config(values, origins)  # type: ignore[arg-type]
    if problems:
        raise Refused(problems)
    sections = {name: kind(**(values.get(name) or {})) for name, kind in OWN_SECTIONS.items()}
    libraries = {name: dict(values.get(name) or {}) for name in LIBRARY_SECTIONS}
    rest = {key: value for key, value in values.items() if key not in (*sections, *libraries)}
    return RunConfig(**rest, **sections, **libraries)  # type: ignore[arg-type]


def to_yaml(config: RunConfig) -> str:
    """The config of a run folder: complete, and composable again with ``--config-path``."""
    header = (
        "# Everything this run was made from. To run it again:\n"
        "# python -m runner --config-path <this folder> --config-name config\n"
    )
    values: dict[str, Any] = {"defaults": _RERUN_DEFAULTS, **dataclasses.asdict(config), "output_dir": None}
    return header + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _compose(command: Command, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    if command.extra_dir:
        overrides = [*overrides, f"hydra.searchpath=[file://{command.extra_dir}]"]
    with initialize_config_dir(str(command.config_dir), version_base="1.3", job_name="runner"):
        return compose(command.config_name, overrides, return_hydra_config=True)


def _check_overrides(command: Command) -> tuple[list[Override], list[Problem]]:
    """Parse the overrides; return those that Hydra can compose, and the problems of the others."""
    parser, usable, problems = OverridesParser.create(), [], []
    folders = [folder for folder in (command.config_dir, command.extra_dir) if folder]
    if not (command.config_dir / f"{command.config_name}.yaml").is_file():
        found = [file.stem for file in command.config_dir.glob("*.yaml")]
        message = f"no {command.config_name}.yaml in {command.config_dir}"
        raise Refused(Problem("--config-name", message, nearest(command.config_name, found)))
    groups = {path.name: path for folder in folders for path in folder.iterdir() if path.is_dir()}
    for text in command.overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            hint = "write key=value" if "=" not in text else "quote the value: \"key='a value'\""
            problems.append(Problem(text, str(error).splitlines()[0], hint))
            continue
        key = override.key_or_group
        top = key.partition(".")[0].partition("@")[0].partition("/")[0]
        if key in groups:
            allowed = [file.stem for folder in folders for file in (folder / key).glob("*.yaml")]
            chosen = _values(override)
            wrong = [value for value in chosen if isinstance(value, str) and value not in allowed]
            problems += [
                Problem(text, f"unknown {key} {value!r}", nearest(value, allowed)) for value in wrong
            ]
            if wrong:
                continue
        elif top not in ("hydra", *TOP_LEVEL, *groups):
            problems.append(Problem(text, f"unknown key {key!r}", nearest(top, TOP_LEVEL)))
            continue
        usable.append(override)
    return usable, problems


def _values(override: Override) -> list[object]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.value()]


def _cells(overrides: list[Override], multirun: bool) -> Iterator[list[str]]:
    """Overrides of the run; for a sweep, its first cell and then every other value of each axis, one at a time."""
    axes = [
        list(item.sweep_string_iterator()) if multirun and item.is_sweep_override() else [None]
        for item in overrides
    ]

    def cell(chosen: list[str | None]) -> list[str]:
        return [
            str(item.input_line) if value is None else f"{item.get_key_element()}={value}"
            for item, value in zip(overrides, chosen, strict=True)
        ]

    first = [values[0] for values in axes]
    yield cell(first)
    for number, values in enumerate(axes):
        for value in values[1:]:
            yield cell([*first[:number], value, *first[number + 1 :]])
