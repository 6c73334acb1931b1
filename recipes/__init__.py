"""The recipes: one function each, ``run(config, folder)``, read from top to bottom."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from runner import artifacts, config, console, environment, lineage
from runner.errors import ExitCode, Problem, Refused, RunnerError
from runner.resume import find_checkpoint
from runner.settings import RunConfig

_STATUS = {ExitCode.FAILED: "failed", ExitCode.DIVERGED: "diverged", ExitCode.PREEMPTED: "preempted"}


def run_recipe(
    run: RunConfig, command: str, overrides: list[str], facts: dict[str, Any] | None = None
) -> int:
    """Make the run folder, run the recipe in it, record how it ended, and return the exit code.

    ``command`` is what the user typed, ``overrides`` what this run or cell took from it; ``facts`` are more
    entries of its record.
    """
    quiet_libraries()
    environment.keep_freed_memory()
    console.out.stderr = bool(run.prompt)  # an answer that is piped stands alone
    recipe = importlib.import_module(f"recipes.{run.recipe}")
    model = run.model.architecture or Path(str(run.model.path)).name
    try:
        _refuse_several_processes()
        find_checkpoint(run)  # before the folder is touched, which with resume=auto is the earlier run's own
        parents = lineage.parents(run)  # refuses an adapter that is none, so before there is a folder
        path = artifacts.create(run.output_dir, f"{run.recipe}-{model}", go_on=run.resume == "auto")
        folder = artifacts.RunFolder(path, command, overrides, config.to_yaml(run), run.seed)
        folder.record |= {"recipe": run.recipe, "parents": parents, **(facts or {})}
    except Refused as refused:
        console.refused(refused.problems)
        return ExitCode.REFUSED
    try:
        recipe.run(run, folder)
    except Refused as refused:
        console.refused(refused.problems)
        if run.resume != "auto":
            artifacts.discard(path)
        return ExitCode.REFUSED
    except KeyboardInterrupt as error:
        folder.finish("failed", error)
        console.failed("interrupted", path)
        return ExitCode.FAILED
    except Exception as error:
        code = error.code if isinstance(error, RunnerError) else ExitCode.FAILED
        folder.finish(_STATUS[code], error)
        console.failed(f"{type(error).__name__}: {error}", path, details=not isinstance(error, RunnerError))
        return code
    folder.finish("completed")
    console.closing(folder.record, path)
    return ExitCode.COMPLETED


def _refuse_several_processes() -> None:
    """Ranks of a launcher would each make a run folder of their own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = "several processes cannot share a run yet"
        hint = (
            "start one python -m runner; CUDA_VISIBLE_DEVICES chooses its GPU, model.device_map=auto uses all"
        )
        raise Refused(Problem(f"WORLD_SIZE={os.environ['WORLD_SIZE']}", message, hint))


def quiet_libraries() -> None:
    """Advice of the libraries, where the runner prints its own."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
