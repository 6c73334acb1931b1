"""The jobs of a sweep: which cells share a process, its name, and the file that describes it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.settings import SweepSettings
from runner.core.atomic import json_text, write_atomically
from runner.sweep.cells import Cell
from runner.sweep.ledger import DONE, Ledger
from runner.sweep.split import evenly, pieces

# Cells that a halving must have beside each other to choose among, when a group is split over devices.
_LEAST_OF_HALVING = 4


@dataclass(frozen=True)
class Job:
    """Cells of one process: a pack, or one cell with the reason why it runs ``alone``.

    ``source`` is the earlier job whose checkpoint it resumes, which may have had more cells.
    """

    name: str
    cells: list[Cell]
    alone: str | None
    source: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of its cells."""
        return [cell.name for cell in self.cells]

    @property
    def resumed(self) -> bool:
        """Whether it goes on from a checkpoint."""
        return self.source is not None

    def only(self, names: Collection[str], folder: Path) -> Job:
        """The same job with some of its cells, to be started again in the sweep's ``folder``."""
        cells = [cell for cell in self.cells if cell.name in names]
        found = _has_checkpoint(folder, self.name, names)
        return dataclasses.replace(self, cells=cells, source=self.name if found else None)


@dataclass(frozen=True)
class _Part:
    """Cells that train together, before they have a job; as in ``Job``."""

    cells: list[Cell]
    alone: str | None
    source: str | None = None


def make_jobs(
    cells: Sequence[Cell],
    of_models: Mapping[str, str],
    settings: SweepSettings,
    devices: int,
    ledger: Ledger,
) -> list[Job]:
    """Group cells into jobs, large groups split over so many devices, for which the largest jobs come first.

    ``of_models`` are the reasons that models give to run a cell alone, by its name.
    Cells that an earlier job left at a checkpoint stay together and resume from it, on any number of devices;
    cells that failed in a pack run alone.
    """
    from runner.sweep.packable import group

    failed = {cell.name for cell in cells if ledger.cells[cell.name]["failed_packed"]}
    parts = list(_resumed(cells, failed, ledger))
    resumed = {cell.name for part in parts for cell in part.cells}
    rest = [cell for cell in cells if cell.name not in resumed]
    parts += [
        _Part(found.cells, found.alone)
        for found in group([cell for cell in rest if cell.name not in failed], of_models)
    ]
    parts += [_Part([cell], "it failed in a pack before") for cell in rest if cell.name in failed]
    jobs: list[Job] = []
    for part in _split(parts, settings, devices):
        jobs.append(Job(_name(part, jobs, ledger), part.cells, part.alone, part.source))
    return sorted(jobs, key=lambda job: -len(job.cells)) if devices > 1 else jobs


def followed_jobs(cells: Sequence[Cell], names: Collection[str], ledger: Ledger) -> list[Job]:
    """The jobs of these names, which run already, with their cells among those given that are not done."""
    jobs = []
    for entry in ledger.jobs:
        mine = [
            cell for cell in cells if cell.name in entry["cells"] and ledger.status(cell.name) not in DONE
        ]
        if entry["name"] in names and mine:
            jobs.append(Job(entry["name"], mine, entry["alone"], entry["name"]))
    return jobs


def write_job(job: Job, folder: Path, command: str, settings: SweepSettings) -> Path:
    """Write JOB.json, give it a copy of the checkpoint of another job that it resumes, and clear away what an
    earlier start has left without one."""
    work = folder / "jobs" / job.name
    if job.source != job.name:
        shutil.rmtree(work, ignore_errors=True)
    if job.source is None:
        for name in job.names:
            shutil.rmtree(folder / name, ignore_errors=True)
    elif job.source != job.name and (folder / "jobs" / job.source).is_dir():
        shutil.copytree(folder / "jobs" / job.source, work)
    cells = [
        {
            "name": cell.name,
            "key": cell.key,
            "overrides": cell.overrides,
            "config": dataclasses.asdict(cell.config),
        }
        for cell in job.cells
    ]
    content = {
        "sweep": str(folder),
        "name": job.name,
        "command": command,
        "alone": job.alone,
        "settings": dataclasses.asdict(settings),
        "cells": cells,
    }
    file = folder / "jobs" / f"{job.name}.json"
    write_atomically(file, json_text(content))
    return file


def keys_of(file: Path) -> dict[str, str]:
    """The keys of the cells in a job's file, by name."""
    return {cell["name"]: cell["key"] for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]}


def record_jobs(jobs: list[dict[str, Any]], new: Sequence[Job]) -> None:
    """Enter jobs in sweep.json's list, in which a cell belongs to the job that ran it last."""
    moved = {name for job in new for name in job.names}
    for entry in jobs:
        entry["cells"] = [name for name in entry["cells"] if name not in moved]
    for job in new:
        known = next((entry for entry in jobs if entry["name"] == job.name), None)
        if known is None:
            jobs.append({"name": job.name, "cells": job.names, "alone": job.alone})
        else:
            known |= {"cells": [*known["cells"], *job.names], "alone": job.alone}
    jobs[:] = [entry for entry in jobs if entry["cells"]]


def _resumed(cells: Sequence[Cell], failed: Collection[str], ledger: Ledger) -> Iterator[_Part]:
    """The cells of each earlier job that has left a checkpoint."""
    from runner.sweep.packable import reasons_alone

    for job in ledger.jobs:
        names, alone = set(job["cells"]), job["alone"]
        mine = [cell for cell in cells if cell.name in names and (alone or cell.name not in failed)]
        if not mine or ledger.changed & names:
            continue
        if not alone and any(True for cell in mine for _ in reasons_alone(cell.config)):
            continue  # packed by other code
        if _has_checkpoint(ledger.folder, job["name"], [cell.name for cell in mine]):
            yield _Part(mine, alone, job["name"])


def _split(parts: Sequence[_Part], settings: SweepSettings, devices: int) -> Iterator[_Part]:
    """The parts, packs divided among the devices; neighbours stay together."""
    packs = [len(part.cells) for part in parts if not part.alone]
    least = _LEAST_OF_HALVING if settings.halving else 1
    numbers = iter(pieces(packs, least, len(parts) - len(packs), devices))
    for part in parts:
        if part.alone:
            yield part
            continue
        rest = list(part.cells)
        for size in evenly(len(rest), next(numbers)):
            piece, rest = rest[:size], rest[size:]
            alone = "a device for itself" if size == 1 and part.source is None else None
            yield _Part(piece, alone, part.source)


def _name(part: _Part, jobs: Sequence[Job], ledger: Ledger) -> str:
    """The name of an earlier job of these cells, so that it finds its checkpoint, or a free one."""
    used = {job.name for job in jobs}
    names = {cell.name for cell in part.cells}
    for job in ledger.jobs:
        alike = names <= set(job["cells"]) and bool(job["alone"]) == bool(part.alone)
        if alike and job["name"] not in used and not ledger.changed & set(job["cells"]):
            return job["name"]
    used |= {str(job["name"]) for job in ledger.jobs}
    kind = "cell" if part.alone else "pack"
    return next(name for number in range(1, 100000) if (name := f"{kind}-{number}") not in used)


def _has_checkpoint(folder: Path, job: str, cells: Iterable[str]) -> bool:
    """Whether a job has left a checkpoint: a pack in its own folder, a cell that ran alone in the cell's."""
    places = [folder / "jobs" / job, *(folder / cell / "checkpoints" for cell in cells)]
    return any(place.is_dir() and any(place.rglob("checkpoint-*")) for place in places)
