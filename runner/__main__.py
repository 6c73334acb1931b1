"""The command line, ``python -m runner [key=value ...]``: check everything, then run it, or a sweep of it."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from runner.core.library_env import set_library_env
from runner.core.process.uncaught import set_excepthook

set_library_env()
if __name__ == "__main__":
    set_excepthook()

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.cli.command import Command
from runner.config.settings import RunConfig
from runner.core import console
from runner.core.errors import ConfigError, ExitCode, Issue, RunnerError
from runner.core.paths import CONFIG_DIR
from runner.core.process import libraries
from runner.core.process.folder_lock import unwritable
from runner.core.secrets import masked
from runner.core.signals import end_with_reader
from runner.sweep import Handle


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code (see ``ExitCode``).

    Without ``argv`` it is the process's own, as of ``python -m runner`` and of the installed ``runner``: an
    error that nobody catches is then printed without secrets, and memory is left to the system.
    """
    if argv is None:
        set_excepthook()  # for the installed ``runner``
        libraries.leave_at_exit()
    typed = sys.argv[1:] if argv is None else argv
    command = run_config.parse(typed, OBJECTIVES)
    try:
        if command.informational:
            run_config.check_shown(command)
        else:
            checked = run_config.check(command)
            if not checked.multirun and not command.shown:
                return _run(checked.configs[0], command, typed, checked.overrides, checked.notes)
            command = checked.command
            for note in [] if command.shown else checked.notes:
                console.warn(note)
    except ConfigError as error:
        console.config_errors(error.issues)
        return ExitCode.CONFIG_ERROR
    only_prints = command.informational or command.shown
    with end_with_reader(to_the_end=argv is None) if only_prints else nullcontext():
        return _hand_over(Handle(typed, command))


def _run(
    config: RunConfig, command: Command, typed: list[str], overrides: list[str], notes: Iterable[str] = ()
) -> int:
    """Run one config of a command after its ``notes``; returns the exit code."""
    # the recipe's libraries are imported only once the config is known to be right
    from recipes.run import run_recipe

    words = masked(shlex.join(["python", "-m", "runner", *typed]))
    repeats = command.saved.parent if command.saved else None
    with console.messages_to_stderr(bool(config.prompt)):
        for note in notes:
            console.warn(note)
        return run_recipe(config, words, [masked(text) for text in overrides], repeats=repeats)


def _hand_over(handle: Handle) -> int:
    """Have Hydra run a sweep, or show what its flags ask for; returns the exit code."""
    command = handle.command
    run_config.register(command)
    codes: list[int] = []

    def task(composed: DictConfig) -> None:
        if ExitCode.PREEMPTED in codes:
            return  # with hydra/launcher=basic: the cells after it do not begin
        overrides = HydraConfig.get().overrides.task
        try:
            frozen = run_config.freeze(_placed(composed), OBJECTIVES)
        except ConfigError as error:  # a cell of a sweep that is wrong only in combination
            console.config_errors(error.issues)
            codes.append(ExitCode.CONFIG_ERROR)
        else:
            codes.append(_run(frozen, command, handle.typed, overrides))

    task.sweep = handle  # by which the packed launcher knows the runner's own task
    start = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")(task)
    with _hydra_argv(command.argv), _errors_recorded(codes, handle):
        start()
    if handle.sweep is not None and handle.sweep.ran:
        codes.append(handle.sweep.finish())
    return max(codes, default=ExitCode.COMPLETED)


@contextmanager
def _errors_recorded(codes: list[int], handle: Handle) -> Iterator[None]:
    """Say what Hydra or a sweep raises, and add its exit code to those of the runs."""
    try:
        yield
    except ConfigError as error:  # cells of a sweep that are wrong only in combination
        console.config_errors(error.issues)
        codes.append(ExitCode.CONFIG_ERROR)
    except HydraException as error:
        console.config_errors([Issue("hydra", str(error))])
        codes.append(ExitCode.CONFIG_ERROR)
    except KeyboardInterrupt:
        if handle.sweep is None or not handle.sweep.ran:
            raise
    except Exception as error:
        if handle.sweep is None and isinstance(error, OSError) and error.filename:  # Hydra makes its folder
            console.config_errors([unwritable(Path(os.fsdecode(error.filename)), error)])
            codes.append(ExitCode.CONFIG_ERROR)
            return
        if handle.sweep is None:
            raise
        if not isinstance(error, RunnerError):  # that is a cell that failed, which has been reported
            console.err.print("".join(traceback.format_exception(error)), markup=False)
        console.warn(f"the sweeper stops: {error}")
        codes.append(ExitCode.FAILED)


def _placed(composed: DictConfig) -> DictConfig:
    """The composed config of a sweep's cell with its ``hydra`` node; its folder is in the sweep's."""
    with open_dict(composed):
        composed.hydra = HydraConfig.get()
        composed.output_dir = os.path.join(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)
    return composed


@contextmanager
def _hydra_argv(argv: list[str]) -> Iterator[None]:
    """Hydra reads these words instead of the typed ones, and raises errors instead of printing them."""
    words, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [sys.argv[0], *argv], "1"
    try:
        yield
    finally:
        sys.argv = words
        del os.environ["HYDRA_FULL_ERROR"]
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


if __name__ == "__main__":
    sys.exit(main())
