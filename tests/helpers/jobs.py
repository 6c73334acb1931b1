"""A sweep whose jobs are run by the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.command import Run
from runner.sweep import processes
from runner.sweep.worker import run_job


def sweep_here(
    cli: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, *words: str, folder: str = "sweep"
) -> tuple[Run, list[int]]:
    """The sweep as its command leaves it, and the exit codes of its jobs, run in this process.

    A worker of a job's own needs 5 s to import the libraries; here it ends at once, and leaves the job to us.
    """
    with monkeypatch.context() as patch:
        patch.setattr(processes, "WORKER", ["-c", ""])
        run = cli("-m", *words, folder=folder)
    return run, [run_job(file) for file in sorted(run.folder.glob("jobs/*.json"))]
