"""Compose a command's config with Hydra, and say which override or file is to blame when that fails."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from runner.cli.axes import register_arithmetic
from runner.cli.command import OPTUNA, SAVED_NAME, Command
from runner.cli.composed_once import compose_options_once
from runner.cli.config_source import check_config_files
from runner.cli.inherit import OPTION
from runner.cli.plain import bound_interpolations
from runner.config.origins import Layer, line_of, short
from runner.core.errors import Issue, nearest
from runner.core.paths import PLUGINS

# Hydra takes plugins from the package hydra_plugins only, whose parts may lie in several folders of the path.
# It looks for them once, when it is first started.
if str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))

# Lines of Hydra's messages that name its inner objects.
_NOISE = ("See ", "object_", "reference_type", "full_key", "Config search path")


_resolving: list[tuple[str, str]] = []  # the ${hydra:...} that are being resolved: in which key, of which

Composed = tuple[DictConfig | None, list[Issue]]


@contextmanager
def started(command: Command) -> Iterator[None]:
    """Hydra as its command line would start it, with the same search path."""
    version.setbase("1.3")
    check_config_files()
    bound_interpolations()
    register_arithmetic()
    OmegaConf.register_new_resolver("oc.env", _no_environment, replace=True)
    GlobalHydra.instance().clear()
    path = create_config_search_path(str(command.config_dir))
    if command.extra_dir:
        folder = f"file://{command.extra_dir}"
        path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
    compose_options_once(Hydra.create_main_hydra2("runner", path).config_loader)
    OmegaConf.register_new_resolver("hydra", _of_hydra, replace=True)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def compose(command: Command, overrides: list[str]) -> Composed:
    """Compose; overrides that Hydra rejects are left out, each with its issue.

    Composing takes up to 80 ms, so that the first override that is wrong is found by halving.
    """
    kept, left, issues = [], list(overrides), []
    # Composing only reads what the user wrote, and Hydra raises many kinds of exception for errors in it.
    try:
        return _composed(command, overrides), issues
    except Exception as error:
        failure = error
    try:
        composed = _composed(command, [])
    except Exception:
        return None, [blame("config", failure, command)]
    while left:
        right, wrong = 0, len(left)  # so many that compose with those that are kept, and that do not
        while wrong - right > 1:
            middle = (right + wrong) // 2
            try:
                composed, right = _composed(command, [*kept, *left[:middle]]), middle
            except Exception as error:
                failure, wrong = error, middle
        issues.append(blame(left[right], failure, command))
        kept, left = [*kept, *left[:right]], left[wrong:]
        try:
            return _composed(command, [*kept, *left]) if left else composed, issues
        except Exception as error:
            failure = error
    return composed, issues or [blame("config", failure, command)]


def _no_environment(name: str, *default: Any) -> None:
    """In place of OmegaConf's own, which would put a secret of the environment into ``config.yaml``."""
    hint = "write it on the command line, where the shell fills it in: data.path=$ROWS/rows.jsonl"
    raise InterpolationResolutionError(f"a config does not read the environment (oc.env:{name}); {hint}")


def _of_hydra(path: str, *, _node_: Node) -> Any:
    """In place of Hydra's own, which gives null for a key that it does not have, or not yet.

    OmegaConf does not see that a value leads back to itself through a resolver, and recurses.
    """
    asked = (str(_node_._get_full_key(None)), f"hydra.{path}")
    if asked in _resolving:
        keys = [key for pair in [*_resolving[_resolving.index(asked) :], asked[:1]] for key in pair]
        chain = [key for key, before in zip(keys, ["", *keys], strict=False) if key != before]
        circle = " -> ".join(chain if chain[1:] else chain * 2)
        raise InterpolationResolutionError(f"'${{hydra:{path}}}' leads back to itself: {circle}")
    absent = object()
    node: Any = HydraConfig.get()
    _resolving.append(asked)
    try:
        value = OmegaConf.select(node, path, default=absent)
    finally:
        _resolving.pop()
    if value is absent:
        raise InterpolationResolutionError(f"Hydra has no {path!r}")
    return value


def _composed(command: Command, overrides: list[str]) -> DictConfig:
    bound_interpolations()
    composed = hydra.compose(command.config_name, overrides, return_hydra_config=True)
    given: Any = OmegaConf.to_container(composed.hydra.overrides)
    if {*given["task"], *given["hydra"]} - {*overrides}:  # by these the origin of a value is found
        raise ValueError("hydra.overrides is set by the command line only, not in a file")
    HydraConfig.instance().set_config(composed)  # for ${hydra:...} in a value
    if not OmegaConf.is_interpolation(composed, "hydra"):
        _resolve(composed.hydra)
    return composed


def _resolve(node: Any) -> None:
    """Read every value of Hydra's own section, which raises where a ``${...}`` in it stands for nothing."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        try:
            value = node[key]
        except (MissingMandatoryValue, InterpolationToMissingValueError):
            continue  # which is given when a cell begins
        if OmegaConf.is_config(value):
            _resolve(value)


def blame(where: str, error: Exception, command: Command) -> Issue:
    """An issue of an error met while composing: the file it names, or ``where``."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        place = f"{short(Path(error.problem_mark.name))}:{error.problem_mark.line + 1}"
        return Issue(place, f"not readable as YAML: {error.problem}", error.context or "")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(error).__name__]
    message = lines[0]
    hint = " ".join(line for line in lines[1:] if not line.startswith(_NOISE) and "path=" not in line)
    if where == "config" and isinstance(cause, OmegaConfBaseException) and cause.full_key:
        where = cause.full_key
    # the option that was chosen, then the file that Hydra names
    group, _, option = where.lstrip("+").partition("=")
    files = [f"{group}/{option}"]
    if inside := re.match(r"In '(?P<name>[^']+)': (?P<message>.*)", message):
        message = inside["message"]
        files.append(inside["name"])
    quoted = re.search(r"'([^']+)'", message)
    mentioned = re.split(r"[/ :]", quoted[1].partition("@")[0])[-1] if quoted else ""
    where = next(filter(None, (_named_file(command, file, mentioned) for file in files)), where)
    if "hydra/sweeper/optuna" in message:
        message, hint = "hydra/sweeper=optuna needs the package hydra-optuna-sweeper", OPTUNA
    elif isinstance(error, MissingConfigException) and error.options:
        hint = nearest(mentioned, error.options)
    elif message.startswith("Could not override") and quoted and re.search(r"@[\w.]+\.", quoted[1]):
        hint = "begin the file with: # @package _global_"
    elif message.startswith("Could not override"):
        hint = nearest(mentioned, command.groups(), prefix="/")
    elif message.endswith("is not in struct") and isinstance(
        node := getattr(cause, "parent_node", None), DictConfig
    ):
        message = f"unknown key {mentioned!r}"
        hint = nearest(mentioned, [str(key) for key in node if not str(key).startswith("_")])
    elif message.startswith("Multiple values"):
        message, _, advice = message.partition(". To override a value use ")
        hint = "write " + (where[1:] if where.startswith("+") else advice.replace("override ", "override /"))
    return Issue(where, message, hint)


def _named_file(command: Command, name: str, text: str) -> str | None:
    """Where the file of a config (``experiment/mine``) mentions ``text``, None when it does not."""
    file = command.saved if name == SAVED_NAME else command.locate(name)
    return line_of(file, text) if file else None


def layers(node: DictConfig) -> list[Layer]:
    """The YAML files of the composed config in the order of merging, the strongest last."""
    if not GlobalHydra.instance().is_initialized():
        return []
    bound_interpolations()  # what the config has spent is not this list's
    typed: Any = OmegaConf.to_container(node.overrides)
    overrides: list[str] = [*typed["hydra"], *typed["task"]]
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(node.job.config_name, overrides, RunMode.RUN).defaults
    folders = [Path(source.path) for source in node.runtime.config_sources if source.schema == "file"]
    layers = []
    for default in defaults:
        name = str(default.config_path)
        files = [folder / f"{name}.yaml" for folder in folders]
        if default.primary and name == SAVED_NAME:
            files = [Path(str(ConfigStore.instance().load(f"{name}.yaml").provider))]
        if name.rpartition("/")[2] == OPTION:
            given = json.loads(str(ConfigStore.instance().load(f"{name}.yaml").provider))
            layers += [Layer(Path(file), package, tuple(keys), name) for file, package, keys in given]
        elif file := next((file for file in files if file.is_file()), None):
            layers.append(Layer(file, default.package or "", name=name))
    return layers
