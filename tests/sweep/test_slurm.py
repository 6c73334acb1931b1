"""What is checked of ``hydra/launcher=slurm`` before SLURM is asked, and how its answers are read.

Its commands are stand-ins here; ``tests/slurm`` has a real one.
"""

import json
import os
from pathlib import Path

import pytest

from helpers.command import TINY, check, issues
from helpers.rows import ANSWERS
from helpers.sweeps import sweep_here
from runner.__main__ import main
from runner.core.errors import ConfigError
from runner.sweep.devices import Device
from runner.sweep.slurm import queue, submit, tasks
from runner.sweep.slurm.tasks import Tasks

SWEEP = ("-m", "model=tiny", "lora.r=2,4", "hydra/launcher=slurm")


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Let squeue give an answer, or fail without one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def give(*lines: str, code: int = 0) -> None:
        text = "".join(f"{line}\n" for line in lines)
        (programs / "squeue").write_text(f"#!/bin/sh\ncat <<END\n{text}END\nexit {code}\n")
        (programs / "squeue").chmod(0o755)

    give()
    return give


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The tasks of two jobs of a sweep, of which submitting them only takes note."""
    folder = tmp_path / "sweep"
    (folder / "jobs").mkdir(parents=True)
    files = []
    for name in ("pack-1", "cell-1"):
        files.append(folder / "jobs" / f"{name}.json")
        files[-1].write_text(json.dumps({"sweep": str(folder), "cells": [{"name": name, "key": "k"}]}))
    monkeypatch.setattr(tasks, "submit", lambda *_: None)
    monkeypatch.setattr(tasks, "_OFTEN", 0.0)
    monkeypatch.setattr(tasks, "_LAG", 1000.0)
    found = Tasks(folder, {}, {})
    for number, file in enumerate(files):
        found.start(file, Device(f"SLURM {number}", queued=True), False, False)
    return found


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("hydra.launcher.partitoin=gpu", "did you mean 'partition'?"),
        ("+hydra.launcher.partitoin=gpu", "did you mean 'partition'?"),
        ("hydra.launcher.time=soon", "minutes up to 1440"),
        ("hydra.launcher.time=43200", "in quotes: '12:00:00'"),
        ("hydra.launcher.gres=[gpu]", "a text or a whole number"),
        ('hydra.launcher.account="a\nrm"', "line end"),
        ("hydra.launcher.array_parallelism=0", "at least 1"),
        ("~hydra.launcher.requeues", "is needed"),
        ("hydra.launcher.setup=module", "a list of texts"),
        ('hydra.launcher.sbatch_args=["--nodes=2"]', "decided by the launcher"),
        ("hydra.launcher.sbatch_args=[exclusive]", "is no long option of sbatch"),
        ("sweep.devices=[0,1]", "sweep.devices=8"),
    ],
)
def test_a_mistake_is_found_without_slurm(word, hint):
    assert hint in " ".join(issues(*SWEEP, word))


def test_a_single_run_is_not_taken_for_one_that_is_submitted():
    assert "add -m" in " ".join(issues("model=tiny", "hydra/launcher=slurm"))


def test_a_file_names_a_partition_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    words = ("-m", "--config-dir", "mine", "model=tiny", "lora.r=2,4", "hydra/launcher=theirs")
    (folder / "theirs.yaml").write_text("defaults: [slurm]\npartition: a100\ntime: '12:00:00'\n")
    assert len(check(*words)) == 2
    for line in ("setup: [evil]", "python: evil", "srun_args: [--prolog=evil]", "sbatch_args: [--wrap=evil]"):
        (folder / "theirs.yaml").write_text(f"defaults: [slurm]\n{line}\n")
        assert "counts on the command line only" in " ".join(issues(*words))
    (folder / "theirs.yaml").write_text("defaults: [slurm]\npartitoin: a100\n")
    assert "did you mean 'partition'?" in " ".join(issues(*words))


@pytest.mark.parametrize("missing", ["submitit", "sbatch"])
def test_what_is_missing_is_named_before_anything_begins(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    installed = "submitit" if missing == "sbatch" else None
    monkeypatch.setattr(submit, "find_spec", lambda _: installed)
    monkeypatch.setattr(submit.shutil, "which", lambda _: None if missing == "sbatch" else "/bin/sbatch")
    assert main([*SWEEP, "output_dir=s"]) == 2
    assert missing in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_tasks_are_followed_by_name_and_index(jobs, answer, monkeypatch):
    assert jobs.wait(0) is None
    pack, cell = jobs.running
    assert (pack.array, pack.index, cell.index) == (cell.array, 0, 1)
    assert queue.recorded(jobs._folder) == {pack.array: ["pack-1", "cell-1"]}
    answer(f"{pack.array}|0|7_0|RUNNING|None", f"{pack.array}|1|7_1|PENDING|Resources")
    assert jobs.wait(0) is None
    assert (pack.waiting, cell.waiting) == (False, True)
    answer(f"{pack.array}|0|7_0|OUT_OF_MEMORY|None", f"{pack.array}|1|7_1|CANCELLED|None")
    assert jobs.wait(0) is None, "what they have written may not be seen yet"
    monkeypatch.setattr(tasks, "_LAG", 0.0)
    assert jobs.wait(0) is pack
    assert (pack.code, cell.code) == (-9, 75)
    assert "7_0 has ended as OUT_OF_MEMORY" in pack.reason()
    assert jobs.wait(0) is cell
    assert jobs.running == []


def test_a_slurm_that_does_not_answer_ends_no_task(jobs, answer, capsys):
    answer(code=1)
    assert [jobs.wait(0) for _ in range(3)] == [None] * 3
    assert capsys.readouterr().out.count("SLURM does not answer") == 1


def test_a_task_that_slurm_has_forgotten_has_ended(jobs, answer, monkeypatch):
    assert jobs.wait(0) is None
    monkeypatch.setattr(tasks, "_LAG", 0.0)
    ended = jobs.wait(0)
    assert ended is not None
    assert ended.code < 0


def test_a_task_that_waits_for_no_good_reason_is_reported_once(jobs, answer, capsys):
    jobs.wait(0)
    name = jobs.running[0].array
    answer(f"{name}|0|7_0|PENDING|PartitionTimeLimit", f"{name}|1|7_1|PENDING|Priority")
    for _ in range(3):
        jobs.wait(0)
    said = capsys.readouterr().out
    assert said.count("pack-1 waits in SLURM's queue: PartitionTimeLimit") == 1
    assert "Priority" not in said


def test_a_job_that_slurm_has_is_not_submitted_again(jobs, answer, monkeypatch):
    jobs.wait(0)
    folder, name = jobs._jobs.parent, jobs.running[0].array
    answer(f"{name}|0|7_0|RUNNING|None", f"{name}|1|7_1|COMPLETED|None")
    held = queue.held(folder / "jobs" / "slurm")
    assert list(held) == ["pack-1"]
    monkeypatch.setattr(tasks, "submit", lambda *_: pytest.fail("submitted"))
    again = Tasks(folder, {}, held)
    again.start(folder / "jobs" / "pack-1.json", Device("SLURM 1", queued=True), False, False)
    again.wait(0)
    assert [task.name for task in again.running] == ["pack-1"]
    assert not again.running[0].waiting


def test_a_job_that_was_refused_is_forgotten(jobs, monkeypatch):
    def refuse(*_: object) -> None:
        raise ConfigError([])

    monkeypatch.setattr(tasks, "submit", refuse)
    with pytest.raises(ConfigError):
        jobs.wait(0)
    assert jobs.running == []
    assert not list(Path(jobs._folder).glob("*.json"))


def test_a_job_that_is_started_again_leaves_cells_with_a_result_alone(cli, monkeypatch):
    """As SLURM requeues it, with the same file, after some of its cells have ended."""
    from runner.sweep.worker import run_job

    run, codes = sweep_here(cli, monkeypatch, *TINY, *ANSWERS, "generation.samples=0", "lora.r=2,4")
    assert codes == [0]
    done, cut = (run.folder / name / "run.json" for name in ("lora.r=2", "lora.r=4"))
    cut.write_text(json.dumps(json.loads(cut.read_text()) | {"status": "preempted"}))
    before = done.read_bytes()
    job = run.folder / "jobs" / "pack-1.json"
    assert run_job(job) == 0
    assert json.loads(cut.read_text())["status"] == "completed"
    assert run_job(job) == 0
    assert done.read_bytes() == before
