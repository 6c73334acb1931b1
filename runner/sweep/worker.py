"""The process of a job of a sweep, a pack or single cells: ``python -m runner.sweep.worker JOB DEVICE``.

JOB is its file, or ``-`` for one that is named on the standard input when this process is known to be needed.
"""

from __future__ import annotations

from runner.core.library_env import set_library_env
from runner.core.process.uncaught import set_excepthook

set_library_env()
if __name__ == "__main__":
    set_excepthook()

import dataclasses
import importlib
import itertools
import json
import os
import select
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from recipes import OBJECTIVES
from recipes.run import quiet_libraries, run_recipe
from runner.cli.saved_config import to_yaml
from runner.config.settings import RunConfig, SweepSettings
from runner.core import console, signals
from runner.core.errors import ConfigError, ExitCode, RunnerError
from runner.core.process import libraries, orphan
from runner.runs.run_folder import RunFolder
from runner.training.out_of_memory import explained


def run_job(file: Path, device: str | None = None) -> int:
    """Run a job that the sweep has written down, and return the exit code of its worst cell.

    Every cell's outcome is in its run folder, with the name of the ``device`` that the sweep leased it to.
    """
    from runner.core import environment
    from runner.packed import CannotPack

    job = json.loads(file.read_text(encoding="utf-8")) | {"device": device}
    quiet_libraries()
    environment.keep_freed_memory()
    if job["alone"] is None:
        try:
            return _run_pack(job, file.with_suffix(""))
        except CannotPack as reason:
            console.warn(f"{job['name']}: the cells run one by one, {reason}")
    codes: list[int] = [ExitCode.COMPLETED]
    for cell in job["cells"]:
        codes.append(_run_alone(job, cell))
        if _interrupted(Path(job["sweep"]) / cell["name"] / "run.json"):
            break
    return max(codes)


def _interrupted(record: Path) -> bool:
    """Whether a run was ended by a signal; one with a config error has left no record."""
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] == "preempted"


def _run_alone(job: dict[str, Any], cell: dict[str, Any]) -> int:
    """One cell as a run of its own; an interrupted one resumes from its checkpoint."""
    folder = Path(job["sweep"]) / cell["name"]
    run = dataclasses.replace(RunConfig.of(cell["config"]), output_dir=str(folder), resume="auto")
    return run_recipe(run, job["command"], cell["overrides"], {"cell": _mark(job, cell)})


def _run_pack(job: dict[str, Any], work: Path) -> int:
    """All cells together; those with another number of examples than the first, in packs after it."""
    _import_libraries()
    from runner.packed.cell import CellRun
    from runner.packed.train_pack import train_pack

    settings = SweepSettings(**job["settings"])
    cells = []
    for cell in job["cells"]:
        run = RunConfig.of(cell["config"])
        path = Path(job["sweep"]) / cell["name"]
        if _is_over(path, cell["key"]):
            continue
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path, job["command"], cell["overrides"], to_yaml(run), run.seed)
        folder.record |= {"recipe": run.recipe, "parents": [], "cell": _mark(job, cell)}
        cells.append(CellRun(cell["name"], run, folder))
    if not cells:
        return ExitCode.COMPLETED
    left, rounds, objective = cells, itertools.count(1), OBJECTIVES[cells[0].config.recipe]
    try:
        with signals.signal_handlers():
            while left:
                left = train_pack(left, objective, settings, work / str(next(rounds)))
    except Exception as error:
        return _fail(cells, explained(error, cells[0].config))
    shutil.rmtree(work, ignore_errors=True)  # its checkpoints: every cell is complete
    worst = {"completed": ExitCode.COMPLETED, "dropped": ExitCode.COMPLETED, "diverged": ExitCode.DIVERGED}
    return max(worst.get(cell.folder.record["status"], ExitCode.FAILED) for cell in cells)


def _is_over(folder: Path, key: str) -> bool:
    """Whether a cell has a result, of a start of the same job that was ended before the others had one."""
    file = folder / "run.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return record.get("status") in ("completed", "dropped", "diverged") and record["cell"]["key"] == key


def _fail(cells: list[Any], error: Exception) -> int:
    """Record that the pack ended early; a pack that cannot be one is left to its caller."""
    from runner.packed import CannotPack

    if isinstance(error, CannotPack):
        raise error
    if isinstance(error, ConfigError):
        console.config_errors(error.issues)
    else:
        if not isinstance(error, RunnerError):
            console.err.print("".join(traceback.format_exception(error)), markup=False)
    code = error.code if isinstance(error, RunnerError) else ExitCode.FAILED
    status = "preempted" if code == ExitCode.PREEMPTED else "failed"
    for cell in cells:
        if cell.folder.record["status"] == "running":
            cell.folder.finish(status, error)
    return code


def _mark(job: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    return {"key": cell["key"], "sweep": job["sweep"], "job": job["name"], "device": job["device"]}


def _import_libraries() -> None:
    with libraries.importing("trl"):
        importlib.import_module("runner.packed.train_pack")


def _awaited() -> str:
    """The job that is named on the standard input; as long as it is not, the libraries are imported."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        quiet_libraries()
        _import_libraries()
    line = sys.stdin.readline()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return json.loads(line) if line else ""


if __name__ == "__main__":
    libraries.leave_at_exit()
    orphan.die_with_parent()
    if job := _awaited() if sys.argv[1] == "-" else sys.argv[1]:
        sys.exit(run_job(Path(job), sys.argv[2]))
