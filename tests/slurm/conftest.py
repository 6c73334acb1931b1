"""One SLURM cluster for all tests here, and the commands that use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.command import TINY
from helpers.paths import ROOT
from helpers.rows import ANSWERS
from slurm.cluster import cluster, missing

WORDS = (*TINY, *ANSWERS, "trainer.per_device_train_batch_size=2", "generation.samples=1")


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The variables of a cluster that is up. Skipped only where it is not installed."""
    if absent := missing():
        pytest.skip(f"not installed: {', '.join(absent)}; apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, for the name of a socket
    try:
        with cluster(folder) as variables:
            yield variables
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm_command(slurm: dict[str, str]) -> Iterator[Callable[..., str]]:
    """Run a command of SLURM and return what it prints; what a test leaves in the queue is cancelled."""

    def run(*words: str) -> str:
        return subprocess.run(
            words, env={**os.environ, **slurm}, capture_output=True, text=True, check=True
        ).stdout.strip()

    yield run
    run("scancel", "--me")


@pytest.fixture
def sweep(slurm: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``python -m runner -m`` in an empty folder; with ``code``, that Python in its place."""
    started = []

    def start(*words: str, code: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, *(["-c", code] if code else ["-m", "runner"]), "-m", *WORDS, *words]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, **slurm, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
        with (tmp_path / "out.log").open("ab") as output:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
