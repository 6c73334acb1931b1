"""What an adapter was made from: its folder, the run that made it, and the base it belongs to.

Reads small files only, so that a command line with ``adapter=`` is understood without importing a library.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.core.paths import SWEEP_FILE

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
        return json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))

    @property
    def base(self) -> dict[str, Any]:
        """Its ``base.json``: ``model`` (settings) and ``identity``; empty for an adapter from elsewhere."""
        file = self.folder / BASE_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @property
    def sections(self) -> dict[str, Any]:
        """The config of the run that made it, empty when that is not at hand."""
        file = self.run / "config.yaml" if self.run else None
        values = yaml.safe_load(file.read_text(encoding="utf-8")) if file and file.is_file() else None
        return values if isinstance(values, dict) else {}


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
        if (folder / "adapter_config.json").is_file():
            run = folder.parent if (folder.parent / "run.json").is_file() else None
            return Adapter((run or folder).resolve().name.replace(".", "-"), folder, run)
    if best := _best_cell(given, f"adapter={path}"):
        return find_adapter(best)
    where = f"adapter={path}"
    if (given / "model" / "config.json").is_file():
        hint = f"it holds a whole model: model.path={given / 'model'}"
        raise ConfigError(Issue(where, "holds no adapter_config.json", hint))
    raise ConfigError(Issue(where, "holds no adapter_config.json", "name a run folder or its adapter/"))


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
    """Check that adapters belong to the base whose ``identity`` is given. Raises ``ConfigError``.

    Returns a warning for each adapter that has no record of its base.
    """
    issues: list[Issue] = []
    notes: list[str] = []
    for adapter in adapters(config):
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


def check_shape(config: RunConfig) -> None:
    """Check that the ``lora`` section fits the adapter that is trained further, and its task."""
    for adapter in adapters(config):
        shape = adapter.config
        issues = [
            Issue(f"lora.{key}={value}", f"adapter={adapter.folder} has {key}={shape[key]}, and keeps it")
            for key, value in config.lora.items()
            if key in shape and isinstance(value, (int, float, bool)) and value != shape[key]
        ]
        if issues:
            raise ConfigError(issues)


def write_base(
    folder: Path, model: dict[str, Any], identity: dict[str, Any], classes: list[str] | None = None
) -> None:
    """Record in an adapter's folder the settings (``model``) and the identity of its base.

    ``classes`` are the outputs of a head that the base does not have, in order.
    """
    facts = {"model": model, "identity": identity, **({"classes": classes} if classes else {})}
    text = json.dumps(facts, indent=2, sort_keys=True)
    (folder / BASE_FILE).write_text(text + "\n", encoding="utf-8")


def _names(name: str) -> Any:
    yield name
    for number in range(2, 1000):
        yield f"{name}-{number}"
