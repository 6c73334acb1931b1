"""A sweep in an empty folder, with stand-ins for its processes."""

from __future__ import annotations

import json

import pytest

from helpers.sweeps import WORKER, Ran
from runner.__main__ import main
from runner.sweep import devices, processes


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
    """An empty folder in which children are stand-ins."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(processes, "WORKER", [str(script)])
    monkeypatch.setattr(devices, "cuda_devices", list)
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
