"""Workers that a sweep starts before it knows their jobs: none is left where there is none for it."""

import json

import psutil
import pytest

from runner.__main__ import main
from runner.sweep import run_sweep

WORDS = ("model=tiny", "lora.r=2,4")


def waiting() -> list[psutil.Process]:
    """The stand-ins for workers that this process has started and not ended."""
    return [child for child in psutil.Process().children() if "worker.py" in " ".join(child.cmdline())]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_ends_the_checks_leaves_no_worker_and_no_folder(place, monkeypatch, error):
    def broken(cells):
        assert len(waiting()) == 1  # for one device
        raise error

    monkeypatch.setattr(run_sweep, "check_models", broken)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            main(["-m", *WORDS, "output_dir=s"])
    else:
        assert main(["-m", *WORDS, "output_dir=s"]) == 1
    assert not waiting()
    assert not (place / "s" / "jobs").exists()
    assert not (place / "s" / "sweep.json").exists()


def test_the_folder_of_a_job_may_have_any_name(place, started, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")  # of what the worker reads
    assert main(["-m", *WORDS, "output_dir='größe Ω'"]) == 0
    record = json.loads((place / "größe Ω" / "sweep.json").read_text(encoding="utf-8"))
    assert record["status"] == "completed"
    assert len(started()) == 1


def test_a_device_without_a_job_has_no_worker(sweep, gpus, monkeypatch):
    counted = []
    expect = run_sweep.Sweep._expect

    def counting(self, jobs, on_cuda):
        counted.append((len(jobs), len(waiting())))
        expect(self, jobs, on_cuda)

    monkeypatch.setattr(run_sweep.Sweep, "_expect", counting)
    assert sweep(*WORDS, "sweep.halving=[0.5]").code == 0  # two cells that are chosen from stay together
    assert counted == [(1, 1)]
