"""A cell that was killed between its record and its report has the report when its sweep ends."""

import json
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.sweep import devices, processes

# A child that writes the records of its cells and is killed before the report of the first one.
WORKER = """
import json, os, signal, sys
from pathlib import Path
job = json.loads(Path(json.loads(sys.stdin.readline())).read_text())
for number, cell in enumerate(job["cells"]):
    folder = Path(job["sweep"]) / cell["name"]
    folder.mkdir(parents=True)
    record = {"status": STATUS, "metrics": {"eval_loss": 1 / cell["config"]["lora"]["r"]}}
    record |= {"cell": {"key": cell["key"], "sweep": job["sweep"], "job": job["name"]}}
    (folder / "run.json").write_text(json.dumps(record))
    if number or not KILLED:
        (folder / "report.html").write_text("its own")
if KILLED:
    os.kill(os.getpid(), signal.SIGKILL)
"""
WORDS = ["-m", "lora.r=4,8", "output_dir=s"]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "WORKER", [str(tmp_path / "worker.py")])
    monkeypatch.setattr(devices, "cuda_devices", list)

    def write(status: str = "completed", killed: bool = True) -> None:
        text = WORKER.replace("STATUS", repr(status)).replace("KILLED", repr(killed))
        (tmp_path / "worker.py").write_text(text)

    return write


def reports() -> list[str]:
    return [(Path("s") / name / "report.html").read_text() for name in ("lora.r=4", "lora.r=8")]


@pytest.mark.sampled(3)
@pytest.mark.report
@pytest.mark.parametrize("status", ["completed", "dropped", "diverged"])
def test_a_killed_child_leaves_its_cells_with_reports(worker, status):
    worker(status)
    main(WORDS)
    first, second = reports()
    assert "<html" in first
    assert second == "its own"


@pytest.mark.slow
@pytest.mark.report
def test_a_finished_cell_without_report_gets_it_when_the_sweep_is_started_again(worker, capsys):
    worker(killed=False)
    assert main(WORDS) == 0
    assert reports() == ["its own"] * 2
    Path("s/lora.r=8/report.html").unlink()
    record = Path("s/lora.r=8/run.json").read_bytes()
    capsys.readouterr()
    assert main(WORDS) == 0
    assert "nothing is left to run" in capsys.readouterr().out
    first, second = reports()
    assert first == "its own"
    assert "<html" in second
    assert Path("s/lora.r=8/run.json").read_bytes() == record


@pytest.mark.slow
@pytest.mark.report
def test_a_cell_that_has_recorded_no_end_has_no_report(worker):
    worker("running")
    main(WORDS)
    assert json.loads(Path("s/lora.r=4/run.json").read_text())["status"] == "running"
    assert not Path("s/lora.r=4/report.html").exists()
