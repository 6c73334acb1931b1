"""The cells of a sweep: which runs it has, how each is called, and what tells one result from another."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runner.config.settings import RunConfig, SweepSettings
from runner.core import environment
from runner.core.atomic import sha256_of, sha256_of_file
from runner.core.code_digest import code_digest
from runner.core.errors import ConfigError, Issue
from runner.core.folder_names import name_of
from runner.core.hydra_quoting import typed_override
from runner.core.paths import PACKAGE
from runner.data.files import local_files

# What does not decide a result: where it is written, how it was begun, and with which other cells.
_FREE = ("output_dir", "resume", "sweep")
_LIBRARIES = ("torch", "transformers", "peft", "trl")
# The rooms that decide a cell's metrics, and those that do so for some recipes only.
_ROOMS = ("data", "models", "evaluation", "training", "packed")
_MORE_ROOMS = {"merge": ("export",), "chain": ("export",)}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    ``name`` is its folder in the sweep folder, ``group`` the name that it shares with its repeats. ``key``
    digests its config and its files (``key_of``). ``overrides`` are those of its axes (``lora.r=8``), as
    typed, and of a repeat its seed. In ``config`` the section ``sweep`` has its defaults, as in a run of its
    own.
    """

    name: str
    group: str
    key: str
    overrides: list[str]
    config: RunConfig

    @property
    def values(self) -> dict[str, str]:
        """The values of its axes by key, as typed."""
        return dict(text.lstrip("+~").split("=", 1) for text in self.overrides)


def expand(overrides: Sequence[str], config: RunConfig, settings: SweepSettings, folder: Path) -> list[Cell]:
    """The cells of one combination of the axes: one, or its repeats. Raises ``ConfigError``."""
    group = name_of(overrides)
    cells = []
    for number in range(settings.repeat):
        seed = [f"seed={config.seed + number}"] if settings.repeat > 1 else []
        named = [*overrides, *seed]
        name = name_of(named) if overrides or not seed else seed[0]
        run = dataclasses.replace(
            config,
            seed=config.seed + number,
            output_dir=str(folder / name),
            resume=None,
            sweep=SweepSettings(),
        )
        cells.append(Cell(name, group, key_of(run), named, run))
    return cells


def check_cells(cells: Iterable[Cell]) -> Iterator[Issue]:
    """An issue for each cell that is the same run as an earlier one, is called like it, or has its
    repository."""
    names: dict[str, str] = {}
    pushed: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.config.push_to:
            pushed.setdefault(cell.config.push_to, []).append(cell)
        if cell.key not in names and cell.name in names.values():
            message = "two cells would have this folder: their values differ by quotes only"
            yield Issue(cell.name, message, "leave one of them out")
        if cell.key in names:
            other = names[cell.key]
            message = f"is the same run as {other}" if other != cell.name else "is in the sweep twice"
            yield Issue(cell.name, message, "leave a value out, or let sweep.zip walk axes together")
        names.setdefault(cell.key, cell.name)
    for repository, several in pushed.items():
        if len(several) > 1:
            message = f"{len(several)} cells would be pushed there, one over the other"
            folder = Path(str(several[0].config.output_dir)).parent
            source = typed_override("adapter", str(folder))
            best = f"python -m runner recipe=merge {source} push_to={repository}"
            best += ", or hf upload for its adapter alone"
            if not any(cell.config.lora for cell in several):
                best = f"hf upload {repository} {shlex.quote(f'{folder}/CELL/model')}"
            yield Issue(
                f"push_to={repository}", message, f"leave it out, and push the best afterwards: {best}"
            )


def placed(issue: Issue, names: Sequence[str], every: int) -> Issue:
    """An issue with the cells that have it, unless all do."""
    if len(names) == every:
        return issue
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return dataclasses.replace(issue, message=f"{issue.message} (in {names[0]}{more})")


def key_of(config: RunConfig) -> str:
    """``sha256:HEX`` of what a run computes: its config and the files that this names; not by which code.

    Data files, adapters and embedded rows count with their content, what is on the hub with its name and
    revision, a local model with the names and sizes of its files. Raises ``ConfigError``.
    """
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    return sha256_of(json.dumps([_sorted(values), sorted(_contents(config))]))


def code_of(config: RunConfig) -> str:
    """``sha256:HEX`` of the code that computes a run: the rooms that decide its metrics, and the libraries.

    Comments, docstrings and formatting do not count, nor do the rooms that only report.
    """
    rooms = (*_ROOMS, *_MORE_ROOMS.get(config.recipe, ()))
    folders = [*(PACKAGE / room for room in rooms), PACKAGE.parent / "recipes"]
    return sha256_of(json.dumps([code_digest(folders), _libraries()]))


def _contents(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What is in the local files that a config names."""
    for key in ("path", "eval_path"):
        given = getattr(config.data, key)
        for source in given if isinstance(given, list) else [given]:
            path = source.get("path") if isinstance(source, dict) else source
            for file in local_files(str(path), f"data.{key}") if path else []:
                yield str(path), _digest(file)
    adapters = config.adapter if isinstance(config.adapter, list) else [config.adapter]
    for path in filter(None, adapters):
        yield from ((str(path), _digest(file)) for file in _adapter_files(str(path)))
    model = Path(str(config.model.path)).expanduser()
    if config.model.path and model.exists():
        files = sorted(model.rglob("*")) if model.is_dir() else [model]
        yield from ((file.name, str(file.stat().st_size)) for file in files if file.is_file())


def _adapter_files(path: str) -> list[Path]:
    from runner.config.adapters import find_adapter

    try:
        return sorted(find_adapter(path).folder.glob("adapter_*"))
    except ConfigError:
        return []  # the run that starts from it says why


def _digest(file: Path) -> str:
    state = file.stat()
    return _digest_of(file, state.st_size, state.st_mtime_ns)


@cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    """One reading of a file for all cells."""
    return sha256_of_file(file)


@cache
def _libraries() -> dict[str, str]:
    versions = environment.package_versions()
    return {name: versions[name] for name in _LIBRARIES if name in versions}


def _sorted(value: Any) -> Any:
    """A value in an order of its own, so that equal ones are written alike."""
    if isinstance(value, dict):
        return sorted((str(key), _sorted(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
