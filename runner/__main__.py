"""The command line, ``python -m runner [key=value ...]``: check everything, then hand over to Hydra."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from runner.core.library_env import set_library_env

set_library_env()

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from runner.cli import run_config
from runner.core import console
from runner.core.errors import ConfigError, ExitCode, Issue, RunnerError
from runner.core.paths import CONFIG_DIR
from runner.core.secrets import mask_uncaught, masked
from runner.sweep import Handle


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code (see ``ExitCode``)."""
    typed = sys.argv[1:] if argv is None else argv
    command = run_config.parse(typed)
    try:
        run_config.check_shown(command) if command.informational else run_config.check(command)
    except ConfigError as error:
        console.config_errors(error.issues)
        return ExitCode.CONFIG_ERROR
    run_config.register(command)
    codes: list[int] = []
    handle = Handle(typed, command)

    def task(composed: DictConfig) -> None:
        if ExitCode.PREEMPTED not in codes:  # with hydra/launcher=basic: the cells after it do not begin
            codes.append(_run(composed, typed))

    task.sweep = handle  # by which the packed launcher knows the runner's own task
    start = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")(task)
    before, sys.argv = sys.argv, [sys.argv[0], *command.argv]
    try:
        with _own_errors():
            start()
    except ConfigError as error:  # cells of a sweep that are wrong only in combination
        console.config_errors(error.issues)
        codes.append(ExitCode.CONFIG_ERROR)
    except HydraException as error:
        console.config_errors([Issue("hydra", str(error))])
        return ExitCode.CONFIG_ERROR
    except KeyboardInterrupt:
        if handle.sweep is None:
            raise
    except Exception as error:
        if handle.sweep is None:
            raise
        if not isinstance(error, RunnerError):  # that is a cell that failed, which has been reported
            console.err.print("".join(traceback.format_exception(error)), markup=False)
        console.warn(f"the sweeper stops: {error}")
        codes.append(ExitCode.FAILED)
    finally:
        sys.argv = before
    if handle.sweep is not None and handle.sweep.ran:
        codes.append(handle.sweep.finish())
    return max(codes, default=ExitCode.COMPLETED)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Errors come out of Hydra as they are, instead of printed by it."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _run(composed: DictConfig, typed: list[str]) -> int:
    hydra_config = HydraConfig.get()
    with open_dict(composed):
        composed.hydra = hydra_config
        if hydra_config.mode == RunMode.MULTIRUN:
            sweep = composed.hydra.sweep
            composed.output_dir = os.path.join(sweep.dir, sweep.subdir)
    try:
        frozen = run_config.freeze(composed)
    except ConfigError as error:  # a cell of a sweep that is wrong only in combination
        console.config_errors(error.issues)
        return ExitCode.CONFIG_ERROR
    # the recipe's libraries are imported only once the config is known to be right
    from recipes import run_recipe

    command = masked(shlex.join(["python", "-m", "runner", *typed]))
    return run_recipe(frozen, command, [masked(text) for text in hydra_config.overrides.task])


if __name__ == "__main__":
    mask_uncaught()
    sys.exit(main())
