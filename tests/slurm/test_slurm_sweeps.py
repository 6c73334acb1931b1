"""Sweeps on a real SLURM of one node have the results of local ones, whatever it does to their jobs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.kills import results
from helpers.sweeps import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

SLURM = ("hydra/launcher=slurm", "hydra.launcher.time=5", "hydra.launcher.signal_delay_s=10")
LONG = ("lora.r=2,4", "trainer.max_steps=150", "sweep.checkpoint_seconds=0.001")
# Ends the process as kill -9 does, as soon as SLURM has the jobs and before anything is said of it.
KILLED = """
import sys
from helpers.kills import Point, command
command(sys.argv[1:], Point("runner.sweep.slurm.tasks:submit", after=True))
"""


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


def statuses(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in record(folder)["cells"]}


def said(folder: Path) -> str:
    logs = (file.read_text()[-2000:] for file in [folder.parent / "out.log", *folder.glob("jobs/**/*.log")])
    return "\n".join(logs)


def arrays(folder: Path) -> list[list[str]]:
    return [json.loads(file.read_text()) for file in folder.glob("jobs/slurm/*.json")]


def assert_same(ours: Path, theirs: Path) -> None:
    """Every cell has the bytes that the local sweep gave it, and the sweep what it leaves at its end."""
    names = statuses(theirs)
    assert statuses(ours) == names
    for name in names:
        assert results(ours / name) == results(theirs / name), name
    assert record(ours)["status"] == "completed"
    assert record(ours)["best"] == record(theirs)["best"]
    for file in ("leaderboard.csv", "report.html"):
        assert (ours / file).is_file()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """The folders of local sweeps by their words, each run once."""
    return {}


@pytest.fixture
def undisturbed(local, sweep, tmp_path):
    """The folder of the same sweep without SLURM."""

    def run(*words: str) -> Path:
        if words not in local:
            assert sweep(*words, "output_dir=local").wait(300) == 0, said(tmp_path / "local")
            local[words] = tmp_path / "local"
        return local[words]

    return run


def test_a_sweep_has_the_bytes_of_a_local_one(sweep, undisturbed, tmp_path):
    """A pack, and a cell that runs alone, as two tasks of one array."""
    words = ("lora.r=2,4", "lora.use_dora=false,true")
    ours = tmp_path / "ours"
    assert sweep(*words, *SLURM, "output_dir=ours").wait(300) == 0, said(ours)
    assert_same(ours, undisturbed(*words))
    assert [sorted(names) for names in arrays(ours)] == [["cell-1", "cell-2", "pack-1"]]
    assert "SLURM" not in {entry["device"] for entry in record(ours)["cells"]}


@pytest.mark.parametrize("disturbance", ["preempted", "requeued"])
def test_a_job_that_is_ended_resumes_and_has_the_same_bytes(
    disturbance, sweep, slurm_command, undisturbed, tmp_path
):
    ours = tmp_path / "ours"
    process = sweep(*LONG, *SLURM, "output_dir=ours")
    wait_for(lambda: list(ours.glob("jobs/pack-1/1/checkpoints/checkpoint-[4-9]?")), seconds=120)
    (number,) = slurm_command("squeue", "--me", "--noheader", "--format=%A").split()
    if disturbance == "preempted":
        slurm_command("scancel", "--signal=TERM", number)
    else:
        slurm_command("scontrol", "requeue", number)
    wait_for(lambda: slurm_command("squeue", "--me", "--noheader", "--format=%T") == "PENDING", seconds=60)
    wait_for(lambda: set(statuses(ours).values()) == {"waiting"}, seconds=10)
    assert process.wait(300) == 0, said(ours)
    assert (ours / "jobs" / "pack-1.log").read_text().count("training 15/150") == 1, "begun anew"
    assert "Restarts=1" in slurm_command("scontrol", "show", "job", number)
    assert_same(ours, undisturbed(*LONG))


def test_a_sweep_whose_process_was_killed_follows_what_slurm_has(sweep, undisturbed, tmp_path):
    words = ("lora.r=2,4", "lora.use_dora=false,true")
    ours = tmp_path / "ours"
    given = (*words, *SLURM, "output_dir=ours")
    assert sweep(*given, code=KILLED).wait(60) == -signal.SIGKILL
    wait_for(lambda: (ours / "jobs" / "pack-1.log").is_file(), seconds=60)
    local = sweep(*words, "output_dir=ours")
    assert local.wait(60) == 2, "the jobs would be run twice"
    assert sweep(*given).wait(300) == 0, said(ours)
    assert "SLURM has it as" in said(ours)
    assert len(arrays(ours)) == 1
    assert_same(ours, undisturbed(*words))


def test_an_interrupted_sweep_leaves_its_jobs_to_slurm(sweep, undisturbed, tmp_path):
    ours = tmp_path / "ours"
    process = sweep(*LONG, *SLURM, "output_dir=ours")
    wait_for(lambda: list(ours.glob("jobs/pack-1/1/checkpoints/checkpoint-*")), seconds=120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert sweep(*LONG, *SLURM, "output_dir=ours").wait(300) == 0, said(ours)
    assert len(arrays(ours)) == 1
    (log,) = ours.glob("jobs/slurm/*_log.out")
    assert "CANCELLED" not in log.read_text()
    assert_same(ours, undisturbed(*LONG))


def test_a_cell_that_fails_is_recorded_and_a_cancelled_one_can_be_resumed(sweep, slurm_command, tmp_path):
    ours = tmp_path / "ours"
    words = ("trainer.optim=adamw_torch,adamw_anyprecision", "lora.r=2", "trainer.max_steps=2000")
    process = sweep(*words, *SLURM, "output_dir=ours")
    failing, cancelled = "trainer.optim=adamw_anyprecision", "trainer.optim=adamw_torch"
    wait_for(lambda: (ours / "sweep.json").is_file() and statuses(ours)[failing] == "failed", seconds=120)
    wait_for(lambda: (ours / cancelled / "metrics.jsonl").is_file(), seconds=120)
    slurm_command("scancel", "--me")
    assert process.wait(120) == 75, said(ours)
    assert statuses(ours) == {failing: "failed", cancelled: "preempted"}
    (failed,) = (entry for entry in record(ours)["cells"] if entry["name"] == failing)
    assert "torchdistx" in failed["reason"]
    assert (ours / "leaderboard.csv").is_file()


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("hydra.launcher.partitoin=long", "did you mean 'partition'?"),
        ("hydra.launcher.partition=logn", "Invalid partition name specified"),
    ],
)
def test_a_mistake_submits_nothing_and_leaves_nothing(word, hint, sweep, slurm_command, tmp_path):
    assert sweep("lora.r=2,4", *SLURM, word, "output_dir=ours").wait(60) == 2
    assert hint in " ".join((tmp_path / "out.log").read_text().split())
    assert slurm_command("squeue", "--me", "--noheader") == ""
    assert not (tmp_path / "ours").exists()
