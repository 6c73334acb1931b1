"""Real sweeps on two workers against one: the same bytes where the packs are the same, and a split pack.

The rows of a pack are one batch, so that a cell's rounding depends on the cells beside it. A cell that runs
alone, or in the same pack, is the same to the byte whichever worker has it (with the same number of threads);
a cell of a pack that was split over the workers is as equal as packed cells are to their solo runs.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import TINY, Run
from helpers.kills import results
from helpers.packs import assert_equal
from helpers.rows import ANSWERS
from helpers.sweeps import wait_for
from runner.core.paths import PACKAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core"),
]

WORDS = (*TINY, *ANSWERS, "trainer.per_device_train_batch_size=2", "generation.samples=1")


def start(place: Path, *words: str) -> subprocess.Popen[bytes]:
    """``python -m runner -m`` in a process of its own, with an eye on no GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PACKAGE.parent)}
    with (place / "out.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "runner", "-m", *words],
            cwd=place,
            env=environment,
            stdout=output,
            stderr=output,
        )


def sweep(place: Path, count: int, *words: str) -> Path:
    """The folder of a sweep on so many workers, once it has completed."""
    folder = place / f"on-{count}"
    process = start(place, *WORDS, *words, f"sweep.devices={count}", f"output_dir={folder.name}")
    assert process.wait(300) == 0, (place / "out.log").read_text()[-3000:]
    return folder


def record(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def cells(folder: Path) -> dict[str, Run]:
    return {entry["name"]: Run(0, folder / entry["name"]) for entry in record(folder)["cells"]}


def test_two_workers_give_the_bytes_of_one(tmp_path):
    """A pack and two cells that run alone, which is no grid to split."""
    one, two = (sweep(tmp_path, count, "lora.r=2,4", "lora.use_dora=false,true") for count in (1, 2))
    ours, theirs = cells(two), cells(one)
    assert len(ours) == len(theirs) == 4
    for name, run in theirs.items():
        assert results(ours[name].folder) == results(run.folder), name
    jobs = [[(job["name"], job["cells"]) for job in record(folder)["jobs"]] for folder in (one, two)]
    assert jobs[0] == jobs[1]
    assert {entry["device"] for entry in record(one)["cells"]} == {"host"}
    assert len({entry["device"] for entry in record(two)["cells"]}) == 2
    assert (two / "leaderboard.csv").is_file()
    assert (two / "report.html").is_file()


def test_a_pack_split_over_two_workers_is_equal_in_float64(tmp_path):
    words = ("model.dtype=float64", "lora.r=2,4", "trainer.learning_rate=1e-3,3e-3")
    one, two = (sweep(tmp_path, count, *words) for count in (1, 2))
    assert [len(job["cells"]) for job in record(one)["jobs"]] == [4]
    assert [len(job["cells"]) for job in record(two)["jobs"]] == [2, 2]
    ours, theirs = cells(two), cells(one)
    for name, run in theirs.items():
        assert_equal(run, ours[name], 1e-8, 1e-8, 1e-8)


def test_a_sweep_ended_on_two_workers_resumes_on_one(tmp_path):
    """Each pack from its checkpoint, to the bytes that it has undisturbed."""
    words = ("lora.r=2,4", "trainer.learning_rate=1e-3,3e-3", "trainer.max_steps=150")
    whole = sweep(tmp_path, 2, *words)
    command = (*WORDS, *words, "sweep.checkpoint_seconds=0.001", "output_dir=cut")
    process = start(tmp_path, *command, "sweep.devices=2")
    cut = tmp_path / "cut"
    saved = "jobs/*/1/checkpoints/checkpoint-*"
    wait_for(lambda: len({path.parts[-4] for path in cut.glob(saved)}) == 2, seconds=120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (tmp_path / "out.log").read_text()[-3000:]
    assert {entry["status"] for entry in record(cut)["cells"]} == {"preempted"}
    assert start(tmp_path, *command, "sweep.devices=1").wait(300) == 0
    assert "2 cells together, from its checkpoint" in (tmp_path / "out.log").read_text()
    ours, theirs = cells(cut), cells(whole)
    for name, run in theirs.items():
        assert results(ours[name].folder) == results(run.folder), name
