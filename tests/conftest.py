"""Shared fixtures: the command line in this process, in an empty folder, and runs that are trained once."""

from __future__ import annotations

import os

# One thread, before anything imports torch, here and in processes that tests start: a tiny run takes 2.1 s of
# CPU with one thread and 12 s with two, which wait for each other.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import gc
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import Run
from runner.__main__ import main

_modules = 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked ``sampled(n)``, mark all cases but every n-th as slow."""
    counts: Counter[str] = Counter()
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            name = item.nodeid.partition("[")[0]
            if counts[name] % marker.args[0]:
                item.add_marker("slow")
            counts[name] += 1


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Take what is imported and cached by now out of the garbage collector's sight.

    A trainer collects garbage when it ends, which takes 0.36 s with all the libraries' objects in sight, a
    third of a tiny run. After each file, and where a test has imported much.
    """
    global _modules
    if nextitem is not None and (nextitem.path != item.path or len(sys.modules) > _modules + 200):
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


@pytest.fixture(autouse=True)
def _blank_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave reports empty, but where a test is marked ``report``: drawing one is a third of a tiny run."""
    if "report" not in request.keywords:
        for page in ("run_report.write_report", "sweep_report.write_sweep_report"):
            monkeypatch.setattr(f"runner.reports.{page}", lambda folder: (folder / "report.html").touch())


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Run ``python -m runner`` with overrides, in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, folder: str = "run") -> Run:
        return Run(main([*words, f"output_dir={folder}"]), tmp_path / folder)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run by its overrides, which is trained once a session; tests must not write to it."""
    runs: dict[tuple[str, ...], Path] = {}

    def train(*words: str) -> Path:
        if words not in runs:
            folder = tmp_path_factory.mktemp("trained") / "run"
            assert main([*words, f"output_dir={folder}"]) == 0
            runs[words] = folder
        return runs[words]

    return train


@pytest.fixture
def parent(cli: Callable[..., Run], trained: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    """As ``cli``, for a run that a test starts from: a copy of one that was trained once a session."""

    def copy(*words: str, folder: str = "start") -> Run:
        return Run(0, Path(shutil.copytree(trained(*words), tmp_path / folder)))

    return copy


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint, so that the seed draws the adapter and the order but not the base."""
    from helpers.tiny_model import write_model

    return write_model(tmp_path_factory.mktemp("tiny"))
