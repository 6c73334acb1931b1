"""A sweep in an empty folder, with stand-ins for its processes."""

from __future__ import annotations

import json
import shutil

import pytest

from helpers.sweeps import WORKER, Ran
from runner.__main__ import main
from runner.core.paths import PACKAGE
from runner.sweep import cells as cells_module
from runner.sweep import devices, processes, verdicts


@pytest.fixture
def started(tmp_path):
    """The jobs that were started, as NAME:CELLS, since it was last asked."""

    def take() -> list[str]:
        file = tmp_path / "started.txt"
        lines = file.read_text().splitlines() if file.is_file() else []
        file.unlink(missing_ok=True)
        return lines

    return take


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder in which children are stand-ins, and rows are not read before they begin."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(processes, "WORKER", [str(script)])
    monkeypatch.setattr(devices, "cuda_devices", list)
    monkeypatch.setattr(verdicts, "read_data", lambda *_: None)
    monkeypatch.delenv("PLAN", raising=False)
    return tmp_path


@pytest.fixture
def sweep(place, capsys, monkeypatch):
    """Run ``python -m runner -m`` in an empty folder, with a stand-in for the children."""

    def run(*words: str, plan: dict[str, str] | None = None, folder: str = "s", flag: bool = True) -> Ran:
        monkeypatch.setenv("PLAN", json.dumps(plan or {}))
        given = [*(["-m"] if flag else []), *words, *([f"output_dir={folder}"] if folder else [])]
        code = main(given)
        captured = capsys.readouterr()
        return Ran(code, place / folder, captured.out + captured.err)

    return run


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as a sweep can see."""
    monkeypatch.setattr(devices, "cuda_devices", lambda: ["0", "1"])


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Let the code that computes cells be a copy of this one, with one text in one file replaced."""

    def use(file: str, before: str = "", after: str = "") -> None:
        copy = tmp_path / f"code-{len(list(tmp_path.glob('code-*')))}"
        for folder in ("runner", "recipes"):
            shutil.copytree(PACKAGE.parent / folder, copy / folder, ignore=shutil.ignore_patterns("*.json*"))
        text = (copy / file).read_text(encoding="utf-8")
        assert before in text
        (copy / file).write_text(text.replace(before, after, 1), encoding="utf-8")
        monkeypatch.setattr(cells_module, "PACKAGE", copy / "runner")

    return use


@pytest.fixture
def optuna():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra optuna is not installed")
