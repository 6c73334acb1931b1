"""What an adapter was made from: its folder, the run that made it, and the base it belongs to.

Reads small files only, so that a command line with ``adapter=`` is understood without importing a library.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config.path_rules import ROWS_HINT
from runner.config.settings import RunConfig
from runner.core.atomic import json_text, sha256_of, sha256_of_file
from runner.core.errors import ConfigError, Issue
from runner.core.file_kinds import no_files
from runner.core.hydra_quoting import typed_override
from runner.core.paths import SWEEP_FILE
from runner.core.process.folder_lock import holder
from runner.core.yaml_reader import parse_yaml

_NAMES_BASE = ("base_model_name_or_path", "revision")  # keys of adapter_config.json
CONFIG_FILE = "adapter_config.json"
BASE_FILE = "base.json"  # beside adapter_config.json: the base's settings and identity


@dataclass(frozen=True)
class Adapter:
    """One adapter of ``adapter=``: its short name, its PEFT folder, and the run folder around it, if any."""

    name: str
    folder: Path
    run: Path | None

    @property
    def config(self) -> dict[str, Any]:
        """Its ``adapter_config.json``."""
        return _mapping(self.folder / CONFIG_FILE)

    @property
    def base(self) -> dict[str, Any]:
        """Its ``base.json``: ``model`` (settings) and ``identity``; empty for an adapter from elsewhere."""
        return _mapping(self.folder / BASE_FILE)

    @property
    def sections(self) -> dict[str, Any]:
        """The config of the run that made it, empty when that is not at hand."""
        return _mapping(self.run / "config.yaml") if self.run else {}

    @property
    def record(self) -> dict[str, Any]:
        """The ``run.json`` of the run that made it, empty when that is not at hand."""
        return _mapping(self.run / "run.json") if self.run else {}


def _mapping(file: Path) -> dict[str, Any]:
    """The keys in a file of JSON or YAML; empty where there is no file. Raises ``ConfigError``."""
    if not file.is_file():
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else parse_yaml(text, str(file))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(Issue(str(file), f"is damaged: {reason[:200]}", _rescue(file))) from error
    if not isinstance(values, dict):
        raise ConfigError(Issue(str(file), f"is damaged: it holds {values!r:.80}, not keys", _rescue(file)))
    return values


def _rescue(file: Path) -> str:
    if file.name == CONFIG_FILE:
        return "no adapter can be used without it: fetch it again, or train the adapter again"
    return "an adapter in a folder without it can be used: it then says less about its run"


# What has to be of a type in the files beside an adapter, where it is given.
_TYPES: dict[str, dict[str, type]] = {
    "base": {"model": dict, "identity": dict, "classes": list},
    "record": {"status": str, "digests": dict, "parents": list},
}


def adapters(config: RunConfig) -> list[Adapter]:
    """All adapters of a config, in order, under names of their own. Raises ``ConfigError``.

    PEFT keeps them as attributes of modules, so that one named ``train`` would hide a method; ``base`` and
    ``none`` stand for the model without an adapter.
    """
    given = config.adapter if isinstance(config.adapter, list) else [config.adapter] if config.adapter else []
    paths: list[Adapter] = []
    issues: list[Issue] = []
    for path in given:
        try:
            paths.append(find_adapter(str(path)))
        except ConfigError as error:
            issues += error.issues
    if issues:
        raise ConfigError(issues)
    if not paths:
        return []
    from torch.nn import ParameterDict

    reserved = {"base", "none", *dir(ParameterDict())}
    found: list[Adapter] = []
    for adapter in paths:
        taken = {other.name for other in found}
        first = f"{adapter.name}-adapter" if adapter.name in reserved else adapter.name
        name = next(n for n in _names(first) if n not in taken)
        found.append(Adapter(name, adapter.folder, adapter.run))
    return found


def find_adapter(path: str) -> Adapter:
    """What one ``adapter=`` names: a run folder, its ``adapter/``, or any PEFT folder.

    The folder of a sweep stands for its best cell. Raises ``ConfigError``.
    """
    given = Path(path).expanduser()
    for folder in (given / "adapter", given):
        if (folder / CONFIG_FILE).is_file():
            run = folder.parent if (folder.parent / "run.json").is_file() else None
            found = Adapter((run or folder).resolve().name.replace(".", "-"), folder, run)
            _check_readable(found)
            return found
    if best := _best_cell(given, f"adapter={path}"):
        return find_adapter(best)
    where = f"adapter={path}"
    if (given / "model" / "config.json").is_file():
        hint = f"it holds a whole model: {typed_override('model.path', str(given / 'model'))}"
        raise ConfigError(Issue(where, "holds no adapter_config.json", hint))
    raise ConfigError(Issue(where, "holds no adapter_config.json", "name a run folder or its adapter/"))


def _check_readable(adapter: Adapter) -> None:
    """Raises ``ConfigError`` with each of the files around an adapter that is damaged."""
    issues = list(no_files(adapter.folder, ("*.json", "adapter_model.*")))
    for name in ("config", "base", "sections", "record"):
        try:
            values = getattr(adapter, name)
            file = adapter.folder / BASE_FILE if name == "base" else Path(adapter.run or "") / "run.json"
            for key, kind in _TYPES.get(name, {}).items():
                if key in values and not isinstance(values[key], kind):
                    message = f"is damaged: {key} has a value of another type"
                    issues.append(Issue(str(file), message, _rescue(file)))
        except ConfigError as error:
            issues += error.issues
    if issues:
        raise ConfigError(issues)


def _best_cell(folder: Path, where: str) -> str | None:
    """The folder of a sweep's best cell, None for what is no sweep. Raises ``ConfigError`` for one
    without."""
    file = folder / SWEEP_FILE
    if not file.is_file():
        return None
    try:
        sweep = json.loads(file.read_text(encoding="utf-8"))
        best, cells = sweep.get("best"), sweep.get("cells") or []
        counts = Counter(str(cell["status"]) for cell in cells)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            Issue(where, f"sweep.json cannot be read: {error}", "name one of its cells")
        ) from error
    if best:
        cell = folder / str(best)
        if cell.resolve().parent == folder.resolve() and cell.is_dir():
            return str(cell)
        raise ConfigError(
            Issue(where, f"its best cell {best!r} is not in the folder", "name one of its cells")
        )
    counted = ", ".join(f"{count} {status}" for status, count in counts.items()) or "it has no cells"
    message = f"the sweep has no best cell{' yet' if sweep.get('status') == 'running' else ''} ({counted})"
    raise ConfigError(Issue(where, message, "name one of its cells"))


def check_base(config: RunConfig, identity: dict[str, Any]) -> list[str]:
    """Check that adapters are what their runs have left, and belong to the base whose ``identity`` is given.

    Returns a warning for each adapter that has no record of its base, and for each whose run has not
    completed. Raises ``ConfigError``.
    """
    issues: list[Issue] = []
    notes: list[str] = []
    for adapter in adapters(config):
        issues += _changed_files(adapter)
        status = adapter.record.get("status", "completed")
        if status != "completed":
            ended = _ended(adapter, status)
            notes.append(f"adapter={adapter.folder}: {ended}: what stands there may not be its result")
        expected = adapter.base.get("identity")
        where = f"adapter={adapter.folder}"
        if not expected:
            notes.append(
                f"{adapter.folder} has no record of the base it was trained on ({BASE_FILE}); "
                "only its shapes can be checked"
            )
            continue
        differing = [key for key in ("vocabulary", "config", "weights") if expected.get(key) != identity[key]]
        if differing:
            name = adapter.base.get("model", {}).get("path") or adapter.base.get("model", {}).get(
                "architecture"
            )
            facts = "; ".join(f"{key} {expected.get(key)} there, {identity[key]} here" for key in differing)
            issues.append(Issue(where, f"belongs to another base ({facts})", f"its base: {name}"))
    if issues:
        raise ConfigError(issues)
    return notes


def _ended(adapter: Adapter, status: str) -> str:
    """How the run of an adapter ended that has not completed."""
    if status != "running":
        return f"its run ended as {status}"
    process = holder(adapter.run) if adapter.run else None
    return f"its run is running ({process})" if process else "its run was killed"


def _changed_files(adapter: Adapter) -> Iterator[Issue]:
    """An issue for each part of an adapter that is not the one whose digest its run has recorded."""
    digests = adapter.record.get("digests")
    expected = digests if isinstance(digests, dict) else {}
    found = adapter_digests(adapter.folder)
    for name in ("adapter", "adapter_config"):
        if expected.get(name) and found.get(name) != expected[name]:
            facts = f"{found.get(name, 'missing')}, in run.json {expected[name]}"
            hint = f"a copy of {adapter.folder} outside of the run's folder is used as it is"
            yield Issue(f"adapter={adapter.folder}", f"is not what its run has written: {name} {facts}", hint)


def adapter_digests(folder: Path) -> dict[str, str]:
    """Digests of what an adapter computes, for ``run.json``: ``adapter`` (weights) and ``adapter_config``.

    The name of the base is left out: who publishes an adapter may write another. Empty without an adapter.
    """
    weights, config = folder / "adapter_model.safetensors", _mapping(folder / CONFIG_FILE)
    digests = {"adapter": sha256_of_file(weights)} if weights.is_file() else {}
    if config:
        facts = {key: value for key, value in config.items() if key not in _NAMES_BASE}
        digests["adapter_config"] = sha256_of(json.dumps(facts, sort_keys=True))
    return digests


def check_rows(config: RunConfig) -> None:
    """Raises ``ConfigError`` for a recipe that reads rows where neither the user nor an adapter names any."""
    if not config.data.path and config.recipe not in ("chat", "merge"):
        message = f"must be given: adapter={config.adapter} brings no rows for recipe={config.recipe}"
        raise ConfigError(Issue("data.path", f"data.path {message}", ROWS_HINT))


def head_issues(config: RunConfig) -> list[Issue]:
    """An issue for each adapter of a classifier or reward model, which writes no text."""
    return [
        Issue(
            f"adapter={adapter.folder}",
            f"was trained as {adapter.config['task_type']}, whose head gives classes or scores, not text",
            "its scores are in run.json of the run that trained it",
        )
        for adapter in adapters(config)
        if adapter.config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS")
    ]


def write_base(
    folder: Path, model: dict[str, Any], identity: dict[str, Any], classes: list[str] | None = None
) -> None:
    """Record in an adapter's folder the settings (``model``) and the identity of its base.

    ``classes`` are the outputs of a head that the base does not have, in order.
    """
    facts = {"model": model, "identity": identity, **({"classes": classes} if classes else {})}
    (folder / BASE_FILE).write_text(json_text(facts, sort_keys=True), encoding="utf-8")


def _names(name: str) -> Any:
    yield name
    for number in range(2, 1000):
        yield f"{name}-{number}"
