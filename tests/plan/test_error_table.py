"""The table of how far a plan is from what is measured: its arithmetic, and its cells."""

import json
import subprocess
import sys

import pytest

from helpers.paths import ROOT

GIB = 2**30


@pytest.fixture
def cells(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plan_cells

    return plan_cells


def result(said: float, real: float | None, step: float = 0.1) -> dict:
    measured = {"reserved": real and real * GIB, "allocated": None, "step_seconds": 0.1}
    return {
        "predicted": {"reserved": said * GIB, "allocated": GIB, "step_seconds": step},
        "measured": measured,
    }


def test_errors_and_their_count(cells):
    found = {
        "a": result(10.5, 10.0, step=0.12),
        "b": result(9.0, 10.0),
        "c": result(3.0, 2.0),
        "d": result(1.0, None),
        "e": {"error": "out of memory"},
    }
    text = cells.markdown(found)
    assert "| a | 10.50 | 10.00 | +5.0% |  | 100 ms | 120 ms | +20.0% |" in text
    assert "| b | 9.00 | 10.00 | -10.0% |" in text
    assert "| d | 1.00 |  |  |" in text
    assert "2 of 3 within 10%, 1 more than 5% under" in text
    assert "- e: out of memory" in text


def test_cells_are_named_once_and_cover_every_kind(cells):
    names = [cell.name for cell in (*cells.CELLS, *cells.CPU_CELLS)]
    assert len(set(names)) == len(names)
    assert len(cells.CELLS) >= 24
    assert {cell.base for cell in cells.CELLS} == {"bf16", "nf4", "int8", "fp8"}
    assert {cell.cells for cell in cells.CELLS} == {1, 4, 16}


def test_a_run_on_a_cpu_is_compared_by_its_own_record(cells, tmp_path, monkeypatch):
    import plan_error

    cell = next(cell for cell in cells.CPU_CELLS if cell.model == "tiny")
    predicted = {"peak_bytes": 10.5 * GIB, "step_seconds": None}
    measured = {"measured_peak_bytes": 10 * GIB, "measured_step_seconds": 0.5}

    def trained(command, **_):
        folder = tmp_path / "run"
        assert f"output_dir={folder}" in command
        assert "trainer.max_length=512" in command
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"predicted": predicted | measured}))

    monkeypatch.setattr(plan_error.subprocess, "run", trained)
    found = plan_error.measured(cell, tmp_path, None)
    text = cells.markdown({cell.name: found})
    assert f"| {cell.name} | 10.50 | 10.00 | +5.0% |" in text
    assert "GiB resident; 1 of 1 within 10%" in text


def test_an_unknown_cell_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks" / "plan_error.py"), "--cells", "5b-bf16-1x1"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "5b-bf16-1x1 is none of" in done.stderr
