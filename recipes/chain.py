"""Several recipes as one command: each stage a run of its own, which later stages can name."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.recipes.chain_rules import filled, stage_words
from runner.config.settings import RunConfig
from runner.core import console, signals
from runner.core.errors import ConfigError, ExitCode, Issue, RunnerError
from runner.core.hydra_quoting import hydra_value
from runner.core.paths import CONFIG_DIR
from runner.core.process.folder_lock import hold
from runner.reports import terminal
from runner.runs.resume import read_record
from runner.runs.run_folder import HOLDS, RunFolder

_POLL = 0.5  # seconds between looks at a signal while a stage runs


class StageFailed(RunnerError):
    """A stage did not complete; the exit code is its own, but 1 for a config error: other stages have run."""

    def __init__(self, message: str, code: int) -> None:
        self.code = ExitCode.FAILED if code not in (ExitCode.DIVERGED, ExitCode.PREEMPTED) else ExitCode(code)
        super().__init__(message)


def run(config: RunConfig, folder: RunFolder) -> None:
    """Check all stages, then run one after the other, each in a process and a folder of its own.

    With ``resume=auto`` the stages that have completed are not run again; those that train look whether
    their rows are still the same. Raises ``ConfigError`` for a config error in any stage before the first
    one runs, ``StageFailed`` for the first that does not complete.
    """
    stages = stage_words(config.stages or {})
    flags = _flags(folder.record["command"])
    with folder.timed("check"):
        recipes = _check(stages, flags)
    # what the report is headed with: a chain has no model of its own
    folder.record |= {"model": {"name": " → ".join(stages)}, "adapter": f"{len(stages)} stages"}
    done: dict[str, Any] = folder.record.setdefault("stages", {})
    folder.write()  # by which a stage knows that it is one
    for number, (name, words) in enumerate(stages.items(), start=1):
        path = folder.path / name
        if _status(path) == "completed" and recipes[name] not in OBJECTIVES:
            console.warn(f"stage {name} is complete already")
        else:
            console.heading(f"stage {number} of {len(stages)}: {name}")
            places = [filled(text, lambda *place: _folder(folder.path, *place)) for text in words]
            with folder.timed(name):
                again = _again(path, recipes[name])
                code = _run([*flags, *places, f"output_dir={hydra_value(str(path))}", *again])
            if code:
                raise StageFailed(f"stage {name} ended with exit code {code}", code)
        record = read_record(path)
        done[name] = {"folder": name, **{key: record[key] for key in ("recipe", "seconds", "metrics")}}
        folder.write()
    terminal.stages(done)


def _flags(command: str) -> list[str]:
    """The folder with options of the user's own that the ``command`` of the chain names, for its stages."""
    given = run_config.parse(shlex.split(command)[3:], OBJECTIVES)
    own = next((folder for folder in reversed(given.folders) if folder != CONFIG_DIR), None)
    return ["--config-dir", str(own)] if own else []


def _check(stages: dict[str, list[str]], flags: list[str]) -> dict[str, str]:
    """The recipe of every stage, checked as far as that can be before the stages that it names have run."""
    issues: list[Issue] = []
    recipes: dict[str, str] = {}
    for name, words in stages.items():
        # a folder that is there stands for those that earlier stages will make
        known = [filled(text, lambda *_: ".") for text in words]
        try:
            (stage,) = run_config.check(run_config.parse([*flags, *known], OBJECTIVES)).configs
            recipes[name] = stage.recipe
        except ConfigError as error:
            issues += [
                Issue(f"stages.{name}: {issue.where}", issue.message, issue.hint) for issue in error.issues
            ]
    if issues:
        raise ConfigError(issues)
    return recipes


def _again(path: Path, recipe: str) -> list[str]:
    """What starts a stage once more that has not completed: one that trains resumes, of another what it has
    left is removed. Raises ``StageFailed`` while it still runs, which may be longer than its chain did."""
    if not path.is_dir():
        return []
    if recipe in OBJECTIVES:
        return ["resume=auto"]
    try:
        lock = hold(path, HOLDS)
    except ConfigError as error:  # other stages have run, whose folders a config error would remove
        raise StageFailed(str(error), ExitCode.FAILED) from error
    shutil.rmtree(path)
    lock.release()
    return []


def _run(words: list[str]) -> int:
    """One stage in a process of its own, so that it leaves no memory behind; a signal is handed on to it."""
    process = subprocess.Popen([sys.executable, "-m", "runner", *words], start_new_session=True)
    sent = False
    with signals.defer_signals():
        while process.poll() is None:
            if (name := signals.pending_signal()) and not sent:
                process.send_signal(signal.Signals[name])
                sent = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
    return process.returncode


def _status(path: Path) -> str | None:
    return read_record(path).get("status") if (path / "run.json").is_file() else None


def _folder(root: Path, stage: str, rest: str) -> str:
    """The folder of a stage, and a path in it, as the value of an override."""
    return hydra_value(f"{root / stage}{rest}")
