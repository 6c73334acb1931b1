"""The table of how far a plan is from what is measured: its arithmetic, and its cells."""

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
    names = [cell.name for cell in cells.CELLS]
    assert len(set(names)) == len(names) >= 24
    assert {cell.base for cell in cells.CELLS} == {"bf16", "nf4", "int8", "fp8"}
    assert {cell.cells for cell in cells.CELLS} == {1, 4, 16}


def test_an_unknown_cell_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks" / "plan_error.py"), "--cells", "5b-bf16-1x1"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "5b-bf16-1x1 is none of" in done.stderr
