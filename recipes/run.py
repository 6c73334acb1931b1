"""Run a recipe in a run folder of its own, and record how it ended."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from recipes import OBJECTIVES
from recipes.train import check_inputs, train
from runner.cli.saved_config import to_yaml
from runner.config.objective import Objective
from runner.config.recipe_rules import BELONGS
from runner.config.settings import RunConfig
from runner.core import console, environment, signals
from runner.core.errors import ConfigError, ExitCode, RunnerError
from runner.core.process import libraries, ranks
from runner.core.process.ranks import Rank
from runner.parallel import launch
from runner.parallel.processes import check
from runner.reports import terminal
from runner.reports.run_report import write_report
from runner.runs import run_folder
from runner.runs.parents import parents
from runner.runs.resume import check_resume, find_completed, find_start, read_record, repeated
from runner.training.out_of_memory import explained

_STATUS = {ExitCode.FAILED: "failed", ExitCode.DIVERGED: "diverged", ExitCode.PREEMPTED: "preempted"}

_COMPUTES_NOTHING = ("plan",)  # for which torch is not imported


def run_recipe(
    run: RunConfig,
    command: str,
    overrides: list[str],
    facts: dict[str, Any] | None = None,
    repeats: Path | None = None,
) -> int:
    """Make the run folder, run the recipe in it, record how it ended, and return the exit code.

    ``command`` is what the user typed, ``overrides`` what this run or cell took from it; ``facts`` are more
    entries of its record. ``repeats`` is the run folder whose config was given to be run again.
    """
    quiet_libraries()
    environment.keep_freed_memory()
    objective = OBJECTIVES.get(run.recipe)
    try:
        rank = ranks.claim()
        check(run, rank)
        if rank.number and objective is not None:
            return _follow(run, objective, (command, overrides), rank)
        check_resume(run)
        model = run.model.architecture or Path(run.model.path or "").name
        name = "-".join(filter(None, (run.recipe, model)))
        path = run_folder.create(run.output_dir, name, resume=run.resume == "auto")
        folder = _begin(run, path, objective, (command, overrides), repeats)
    except ConfigError as error:
        console.config_errors(error.issues)
        return ExitCode.CONFIG_ERROR
    if folder is None:
        launch.dismiss(rank)
        return ExitCode.COMPLETED
    folder.record |= facts or {}
    try:
        with signals.signal_handlers():
            if objective is not None:
                words = {"command": command, "overrides": overrides}
                lost = partial(_end, run, folder)
                with launch.together(run, words, rank, path, lost) as group:
                    train(run, folder, objective, group)
            else:
                importlib.import_module(f"recipes.{run.recipe}").run(run, folder)
            folder.finish("completed")
    except ConfigError as error:
        console.config_errors(error.issues)
        folder.withdraw()
        return ExitCode.CONFIG_ERROR
    except Exception as raised:
        return _end(run, folder, raised)
    terminal.closing(folder.record, path)
    return ExitCode.COMPLETED


def _begin(
    run: RunConfig,
    path: Path,
    objective: Objective | None,
    typed: tuple[str, list[str]],
    repeats: Path | None,
) -> run_folder.RunFolder | None:
    """The run folder at ``path``, begun; None where the run in it has completed and nothing is left to do.

    Raises ``ConfigError``, and leaves the folder as it was.
    """
    try:
        completed = find_completed(run) if objective is not None else None
        if completed is not None and objective is not None:
            check_inputs(run, objective, path, completed)
            terminal.nothing_to_do(completed, path)
            if not (path / run_folder.REPORT).is_file():  # killed between record and report
                write_report(path)
            run_folder.abandon(path)
            return None
        find_start(run)  # before anything of an earlier run is written over
        made_from = parents(run, path)
        earlier = repeated(repeats or path, run)
        device = environment.machine if run.recipe in _COMPUTES_NOTHING else environment.device
        with libraries.importing("torch"):  # the device is torch's to say
            folder = run_folder.RunFolder(path, *typed, to_yaml(run), run.seed, device)
    except ConfigError:
        run_folder.abandon(path)
        raise
    folder.compared = earlier
    folder.record |= {"recipe": run.recipe, "parents": made_from}
    return folder


def _end(run: RunConfig, folder: run_folder.RunFolder, raised: Exception) -> int:
    """Record and say how a run ended that did not complete; returns its exit code."""
    error = explained(raised, run)
    code = error.code if isinstance(error, RunnerError) else ExitCode.FAILED
    message = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
    try:
        folder.finish(_STATUS[code], error)
    except OSError as unwritten:  # a full disk, which may be what ended the run
        console.failed(f"{message}; and run.json could not be written: {unwritten}", folder.path)
        return code
    if code == ExitCode.PREEMPTED:
        resumable = run.recipe in OBJECTIVES or run.recipe in BELONGS["resume"]
        console.preempted(message, folder.path, None if _is_part(folder) else resumable)
    else:
        console.failed(message, folder.path, details=not isinstance(error, RunnerError))
    return code


def _is_part(folder: run_folder.RunFolder) -> bool:
    """Whether a sweep or a chain started the run, which says itself how it is resumed."""
    try:
        around = read_record(folder.path.parent)
    except ConfigError:  # it is in no run's folder, or in a damaged one
        around = {}
    return "cell" in folder.record or around.get("recipe") == "chain"


def _follow(run: RunConfig, objective: Objective, typed: tuple[str, list[str]], rank: Rank) -> int:
    """Train with the process that leads, of which this one's folder is a part; returns the exit code."""
    console.silence()
    folder = None
    try:
        with launch.following(rank) as (group, shared):
            if shared is not None:
                own = launch.folder_of(rank, shared)
                with libraries.importing("torch"):
                    folder = run_folder.RunFolder(own, *typed, to_yaml(run), run.seed, shared=shared)
                with signals.signal_handlers():
                    train(run, folder, objective, group)
    except Exception as raised:
        error = explained(raised, run)
        code = error.code if isinstance(error, RunnerError) else ExitCode.FAILED
        if folder is not None:
            folder.finish(_STATUS.get(code, "failed"), error)
        return code
    return ExitCode.COMPLETED


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet_libraries() -> None:
    """Advice of the libraries, where the runner prints its own."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_error)  # which sets its level when it is imported
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
