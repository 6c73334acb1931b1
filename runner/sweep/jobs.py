"""The jobs of a sweep: which cells share a process, its name, and the file that describes it."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.settings import SweepSettings
from runner.core.atomic import json_text, write_atomically
from runner.sweep.cells import Cell
from runner.sweep.ledger import Ledger

# Cells that a halving must have beside each other to choose among, when a group is split over devices.
_LEAST_OF_HALVING = 4


@dataclass(frozen=True)
class Job:
    """Cells of one process: a pack, or one cell with the reason why it runs ``alone``.

    ``resumed`` says that an earlier start began it under the same name, and left a checkpoint.
    """

    name: str
    cells: list[Cell]
    alone: str | None
    resumed: bool = False

    @property
    def names(self) -> list[str]:
        """The names of its cells."""
        return [cell.name for cell in self.cells]


def make_jobs(
    cells: Sequence[Cell],
    settings: SweepSettings,
    slots: int,
    ledger: Ledger,
) -> list[Job]:
    """Group cells into jobs, large groups split evenly over ``slots`` devices.

    Cells that failed in a pack run alone. A job with cells of an earlier one takes its name, so that it finds
    its checkpoint.
    """
    from runner.sweep.packable import group

    failed = {cell.name for cell in cells if ledger.cells[cell.name]["failed_packed"]}
    usable = [job for job in ledger.jobs if not ledger.changed & set(job["cells"])]
    parts: list[tuple[list[Cell], str | None]] = []
    rest = [cell for cell in cells if cell.name not in failed]
    for found in group(rest):
        pieces = 1 if found.alone else _pieces(len(found.cells), len(rest), settings, slots)
        for piece in _split(found.cells, pieces):
            lonely = "a device for itself" if len(piece) == 1 else None
            parts.append((piece, found.alone or lonely))
    parts += [([cell], "it failed in a pack before") for cell in cells if cell.name in failed]
    jobs: list[Job] = []
    taken = {str(job["name"]) for job in ledger.jobs}
    for piece, alone in parts:
        names = {cell.name for cell in piece}
        known = next(
            (j for j in usable if names <= set(j["cells"]) and bool(j["alone"]) == bool(alone)), None
        )
        if known and known["name"] not in [job.name for job in jobs]:
            name = known["name"]
            jobs.append(Job(name, piece, alone, _has_checkpoint(ledger.folder, name, piece, alone)))
            continue
        name = _free("cell" if alone else "pack", taken)
        taken.add(name)
        jobs.append(Job(name, piece, alone))
    return jobs


def write_job(job: Job, folder: Path, command: str, settings: SweepSettings) -> Path:
    """Write JOB.json, and clear away what an earlier start has left without a checkpoint."""
    if not job.resumed:
        shutil.rmtree(folder / "jobs" / job.name, ignore_errors=True)
        for name in job.names:
            shutil.rmtree(folder / name, ignore_errors=True)
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


def _pieces(size: int, every: int, settings: SweepSettings, slots: int) -> int:
    """Into how many jobs a group is split: its share of the devices."""
    least = _LEAST_OF_HALVING if settings.halving else 1
    return max(1, min(round(slots * size / every), size // least))


def _split(cells: list[Cell], pieces: int) -> list[list[Cell]]:
    """Neighbours stay together; the sizes differ by one at most."""
    bounds = [len(cells) * number // pieces for number in range(pieces + 1)]
    return [cells[low:high] for low, high in itertools.pairwise(bounds)]


def _has_checkpoint(folder: Path, name: str, cells: Sequence[Cell], alone: str | None) -> bool:
    places = [folder / cells[0].name / "checkpoints"] if alone else [folder / "jobs" / name]
    return any(place.is_dir() and any(place.rglob("checkpoint-*")) for place in places)


def _free(kind: str, taken: set[str]) -> str:
    return next(name for number in range(1, 100000) if (name := f"{kind}-{number}") not in taken)
