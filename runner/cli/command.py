"""Read the command line: Hydra's flags and overrides, and what is wrong with them before composing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from runner.cli import inherit
from runner.cli.axes import axes_of, quote_nested
from runner.config.checks import nearest_key
from runner.config.objective import Objectives
from runner.config.recipe_rules import recipe_names
from runner.config.settings import RunConfig
from runner.core.errors import Issue, nearest
from runner.core.hydra_quoting import typed_again
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml

TOP_LEVEL = tuple(item.name for item in dataclasses.fields(RunConfig))

# What a saved config.yaml begins with, and by what it is known: it chooses no group, all values are in it.
SAVED_DEFAULTS = [
    "runner",
    "_self_",
    {"override hydra/job_logging": "none"},
    {"override hydra/hydra_logging": "none"},
]
SAVED_NAME = "saved"

# Keys of Hydra that would contradict one of the runner's own.
_RESERVED_HYDRA = {
    "hydra.run.dir": "set output_dir",
    "hydra.job.chdir": "paths are relative to the folder of the command",
    "hydra.output_subdir": "config.yaml in the run folder holds everything",
    "hydra.searchpath": "add your folder with --config-dir",
    "hydra.mode": "add -m for a sweep",
}
# The release of the sweeper for Hydra 1.3; its optuna 2 keeps studies in databases by SQLAlchemy 1 only.
OPTUNA = "pip install 'hydra-optuna-sweeper>=1.3,<1.4' 'sqlalchemy<2'"
# Groups that the defaults list reads the choice of.
_NEEDED = ("model", "trainer")
# Flags of Hydra that are rewritten or not offered: a rerun would load a pickle, which may run any code.
_OWN_FLAGS = {"config_path", "config_name", "config_dir", "overrides", "experimental_rerun"}


@dataclass(frozen=True)
class Command:
    """A parsed command line: overrides as typed, and where the primary config stands.

    ``argv`` is the same command for Hydra, with absolute folders and the flags in front. ``saved`` is the
    file when the primary config is one that a run has saved. ``inherited`` are the values of groups that the
    run behind ``adapter=`` decides, ``inherited_files`` where they stand. With ``shown`` the config is
    printed (``--cfg``). A file may say ``multirun`` and ``sweeper`` too, once it is composed.
    """

    overrides: list[str]
    config_dir: Path = CONFIG_DIR
    config_name: str = "config"
    extra_dir: Path | None = None
    saved: Path | None = None
    multirun: bool = False
    sweeper: str = "basic"
    informational: bool = False
    shown: bool = False
    argv: list[str] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    inherited: dict[str, Any] = field(default_factory=dict)
    inherited_files: dict[str, list[inherit.File]] = field(default_factory=dict)
    objectives: Objectives = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        """Folders that hold config files, the first one that has a file wins."""
        return [folder for folder in (self.config_dir, self.extra_dir) if folder]

    def options(self, group: str) -> list[str]:
        """Options of a config group."""
        names = [file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")]
        return sorted({*names, *([inherit.OPTION] if group in self.inherited else [])})

    def groups(self) -> list[str]:
        """Config groups: folders with YAML files."""
        found = {path.name for folder in self.folders if folder.is_dir() for path in folder.iterdir()}
        return sorted(group for group in found if self.options(group))

    def locate(self, name: str) -> Path | None:
        """The file of a config (``lora/r16``), if there is one."""
        files = (folder / f"{name}.yaml" for folder in self.folders)
        return next((file for file in files if file.is_file()), None)


def parse(argv: list[str], objectives: Objectives) -> Command:
    """Read the command line; ``objectives`` are those of the training recipes, by which it will be checked.

    Flags and overrides may stand in any order. Exits with code 2 when a flag lacks its value.
    """
    parser = get_args_parser()
    args, unknown = parser.parse_known_intermixed_args(argv)
    flags = [option for option in parser._option_string_actions if option.startswith("--")]
    issues = [
        Issue(
            word,
            "unknown flag",
            f"write {word.lstrip('-')}, without dashes"
            if "=" in word
            else f"{nearest(word, flags)} Keys are written key=value, without dashes",
        )
        for word in unknown
    ]
    if args.experimental_rerun:
        issues.append(Issue("--experimental-rerun", "is not supported", "use --config-path RUN_FOLDER"))
    if args.multirun and args.cfg:
        issues.append(Issue("-m", "--cfg shows one run, -m starts several", "leave one of the two flags out"))
    if args.resolve and not args.cfg:
        issues.append(Issue("--resolve", "only shows something together with --cfg", "add --cfg job"))
    config_dir = Path(args.config_path).absolute() if args.config_path else CONFIG_DIR
    # the packaged options stay available beside a primary config of one's own
    given = Path(args.config_dir).absolute() if args.config_dir else None
    extra_dir = given or (CONFIG_DIR if config_dir != CONFIG_DIR else None)
    config_name = (args.config_name or "config").removesuffix(".yaml")
    file, saved = config_dir / f"{config_name}.yaml", None
    if _is_saved(file):
        # a run folder has subfolders that Hydra would take for config groups: the file is composed on its own
        saved, config_dir, extra_dir, config_name = file, CONFIG_DIR, given, SAVED_NAME
    words = ["--config-path", str(config_dir), "--config-name", config_name]
    words += ["--config-dir", str(extra_dir)] if extra_dir and extra_dir.is_dir() else []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if value and action.dest not in _OWN_FLAGS:
            words += [action.option_strings[0], *([] if value is True else [str(value)])]
    overrides, taken, files = [quote_nested(text) for text in args.overrides], {}, {}
    if saved is None:
        folders = [folder for folder in (config_dir, extra_dir) if folder]
        taken, others, files = inherit.inherited(overrides, folders, objectives)
        overrides = [*(f"{group}={inherit.OPTION}" for group in taken), *others, *overrides]
        if (config_dir, config_name) == (CONFIG_DIR, "config"):
            overrides = [*inherit.without_rate(overrides, folders), *overrides]
    informational = bool(args.help or args.hydra_help or args.shell_completion or args.info)
    return Command(
        overrides=overrides,
        config_dir=config_dir,
        config_name=config_name,
        extra_dir=extra_dir,
        saved=saved,
        multirun=bool(args.multirun),
        informational=informational and not issues,
        shown=bool(args.cfg),
        # an error in the overrides must not hide the help
        argv=words if args.help or args.hydra_help else [*words, *overrides],
        issues=issues,
        inherited=taken,
        inherited_files=files,
        objectives=objectives,
    )


def check_overrides(
    command: Command, parser: OverridesParser, texts: Iterable[str]
) -> tuple[list[Override], list[Issue]]:
    """Parse overrides; return those that Hydra can compose, and the issues of the others."""
    usable: list[Override] = []
    issues: list[Issue] = []
    groups = command.groups()
    for text in texts:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException as error:
            issues.append(Issue(text, _grammar(text, error), _quoting(text)))
            continue
        try:
            values = _values(override, command.sweeper)
        except HydraException as error:
            hint = f"write the values: {override.key_or_group}=1,2,3, or let hydra/sweeper=optuna choose them"
            issues.append(Issue(text, str(error).splitlines()[0], hint))
            continue
        found = list(_override_issues(command, override, values, groups))
        issues += found
        if not found:
            usable.append(override)
    return usable, issues


def _values(override: Override, sweeper: str) -> list[object]:
    if override.is_sweep_override() and not override.is_discrete_sweep() and sweeper != "basic":
        return list(axes_of([override])[override.key_or_group].values)
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.value()]


def _override_issues(
    command: Command, override: Override, values: list[object], groups: list[str]
) -> Iterator[Issue]:
    text, key = str(override.input_line), override.key_or_group
    top = re.split(r"[./@\[]", key)[0]
    if override.is_sweep_override() and not command.multirun:
        hint = f"add -m to run them all; if it is one value, {_quoting(text)}"
        yield Issue(text, "several values are a sweep", hint)
    if key == "hydra/sweeper" and values == ["optuna"] and not _optuna():
        yield Issue(text, "needs the package hydra-optuna-sweeper", OPTUNA)
    if key in _RESERVED_HYDRA:
        yield Issue(text, f"{key} is decided elsewhere", f"instead: {_RESERVED_HYDRA[key]}")
    elif override.is_delete() and key in _NEEDED:
        yield Issue(text, f"{key} cannot be left out", f"choose one: {key}=...")
    elif key in groups and not override.is_delete():
        options = command.options(key)
        for value in values:
            if isinstance(value, dict):
                continue  # keys of the section
            if isinstance(value, list):
                sweep = f"for a sweep: -m {key}={','.join(map(str, value))}"
                yield Issue(text, f"{key} takes one option", sweep)
            elif value is None or str(value) not in options:
                name = "none" if value is None else str(value)
                yield Issue(
                    text,
                    f"unknown {key} {name!r}" if value is not None else "null is not an option",
                    nearest(name, options),
                )
            elif override.is_force_add():
                yield Issue(text, f"++ does not choose a {key}", f"write {key}={value}")
    elif top not in ("hydra", *TOP_LEVEL, *groups):
        yield Issue(text, f"unknown key {key!r}", nearest_key(key))
    elif key.startswith("hydra.") and (override.is_add() or override.is_force_add()):
        yield from _new_in_hydra(text, key)


def _new_in_hydra(text: str, key: str) -> Iterator[Issue]:
    """``+`` and ``++`` let Hydra's own config take any key, which nothing would read."""
    node: Any = OmegaConf.structured(HydraConf)
    for name in key.split(".")[1:]:
        free = not isinstance(node, DictConfig) or OmegaConf.get_type(node) in (dict, None)
        if free or name in ("sweeper", "launcher"):  # those are the plugins'
            return
        if name not in node:
            yield Issue(text, f"unknown key {key!r}", nearest(name, map(str, node)))
            return
        node = node._get_node(name)


def _optuna() -> bool:
    """Whether the sweeper that lets optuna choose the values is installed."""
    try:
        return find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    except ModuleNotFoundError:
        return False


def _grammar(text: str, error: HydraException) -> str:
    """Hydra's complaint in one line, without the override it repeats."""
    if "=" not in text:
        return "expected key=value"
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Error parsing override", "See https"))]
    return f"cannot be read: {lines[0] if lines else 'not an override'}"


def _quoting(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        split = "if it belongs to the word before, quote the two together for the shell"
        return f"did you mean recipe={text}?" if text in recipe_names() else split
    if sum(map(value.count, "[{")) != sum(map(value.count, "]}")):
        return f"the shell has split it: quote the whole, '{key}=...'"
    return f"quote it for the shell and for Hydra: {typed_again(key, value)}"


def _is_saved(file: Path) -> bool:
    try:
        values = read_yaml(file)
    except (OSError, ValueError, yaml.YAMLError):
        return False  # not there or not readable: composing it says why
    return isinstance(values, dict) and values.get("defaults") == SAVED_DEFAULTS
