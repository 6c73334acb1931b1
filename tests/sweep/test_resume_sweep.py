"""A sweep that is started again: what is done, done again, marked or refused; and how it ends early."""

import json
import signal
import socket
import subprocess

import pytest

from helpers.command import issues
from helpers.starts import holding
from helpers.sweeps import Ran, alive, children_of, hanging
from runner.core.errors import ExitCode
from runner.sweep import processes


def test_the_same_command_runs_what_is_not_done(sweep, started):
    words = ["lora.r=4,8,16"]
    first = sweep(*words, plan={"lora.r=8": "failed"})
    assert first.code == ExitCode.FAILED
    assert first.record["status"] == "failed"
    assert first.statuses == {"lora.r=4": "completed", "lora.r=8": "failed", "lora.r=16": "completed"}
    assert "Odd: as planned" in first.record["cells"][1]["reason"]
    assert "output_dir=s" in first.said.partition("resume with")[2]
    assert started() == ["pack-1:lora.r=4,lora.r=8,lora.r=16"]
    again = sweep(*words)
    assert (again.code, again.record["status"]) == (0, "completed")
    assert "2 cells already" in again.said
    assert started() == ["cell-1:lora.r=8"]
    assert again.job("cell-1")["alone"] == "it failed in a pack before"
    assert [job["cells"] for job in again.record["jobs"]] == [["lora.r=4", "lora.r=16"], ["lora.r=8"]]
    last = sweep(*words)
    assert "nothing is left to run" in last.said
    assert started() == []


@pytest.mark.slow
def test_a_cell_that_fails_alone_twice_stays_failed(sweep, started, place):
    for _ in range(2):
        assert sweep("lora=dora,r8", plan={"lora=dora": "failed"}).code == ExitCode.FAILED
    started()
    ran = sweep("lora=dora,r8")
    assert ran.code == ExitCode.FAILED
    assert started() == []
    assert "lora=dora is not run again: it failed 2 times alone" in ran.said
    subprocess.run(["rm", "-r", str(place / "s" / "lora=dora")], check=True)
    assert sweep("lora=dora,r8").code == ExitCode.COMPLETED


@pytest.mark.slow
def test_a_dropped_cell_is_done_and_a_diverged_one_is_not_repeated(sweep, started):
    ran = sweep("lora.r=4,8,16", plan={"lora.r=4": "dropped", "lora.r=8": "diverged"})
    assert ran.code == ExitCode.DIVERGED
    started()
    again = sweep("lora.r=4,8,16")
    assert again.code == ExitCode.DIVERGED
    assert "it diverged" in again.said
    assert started() == []


@pytest.mark.slow
def test_a_child_that_dies_does_not_stop_the_others(sweep):
    ran = sweep("lora.r=4,8", "lora.use_dora=false,true", plan={"lora.r=8,lora.use_dora=false": "kill"})
    assert ran.code == ExitCode.FAILED
    assert ran.statuses == {
        "lora.r=4,lora.use_dora=false": "completed",
        "lora.r=4,lora.use_dora=true": "completed",
        "lora.r=8,lora.use_dora=false": "failed",
        "lora.r=8,lora.use_dora=true": "completed",
    }
    (reason,) = [entry["reason"] for entry in ran.record["cells"] if entry["status"] == "failed"]
    assert "SIGKILL" in reason
    assert "about to die" in reason
    assert "about to die" in (ran.folder / "jobs" / "pack-1.log").read_text()


def test_a_preempted_run_resumes_from_its_checkpoint(sweep, started):
    name = "lora=dora"
    ran = sweep("lora=dora,r8", plan={name: "checkpoint"})
    assert (ran.code, ran.statuses[name]) == (ExitCode.PREEMPTED, "preempted")
    assert ran.record["status"] == "preempted"
    started()
    kept = ran.folder / name / "checkpoints" / "checkpoint-1"
    assert kept.is_dir()
    assert sweep("lora=dora,r8").code == 0
    assert kept.is_dir(), "a folder with a checkpoint is left as it is"
    assert started() == [f"cell-1:{name}"]


@pytest.mark.slow
def test_a_result_of_another_config_is_refused_before_anything_runs(sweep, started):
    sweep("lora.r=4,8")
    before = started()
    ran = sweep("lora.r=4,8,16", "trainer.max_steps=7")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "lora.r=4: has a result of another config" in ran.said
    assert "new output_dir" in ran.said
    assert before
    assert started() == []
    assert sweep("lora.r=4,8,16").code == 0
    assert [line.partition(":")[2] for line in started()] == ["lora.r=16"]


def marked(ran: Ran) -> list[str]:
    return [entry["name"] for entry in ran.record["cells"] if entry["other_code"]]


EDIT = ("runner/training/trainer.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n")


@pytest.mark.slow
def test_results_of_other_code_are_kept_and_marked(sweep, started, code):
    code(*EDIT[:1])
    first = sweep("lora.r=4,8")
    assert marked(first) == []
    started()
    code(EDIT[0], '"""', '"""Other words. ')
    again = sweep("lora.r=4,8,16")
    assert (again.code, marked(again)) == (0, [])
    assert "other code" not in again.said
    assert started() == ["cell-1:lora.r=16"]
    code(*EDIT)
    other = sweep("lora.r=4,8,16,32")
    assert other.code == 0
    assert started() == ["cell-2:lora.r=32"]
    assert marked(other) == ["lora.r=4", "lora.r=8", "lora.r=16"]
    assert "3 cells (lora.r=4, lora.r=8, lora.r=16) kept, computed by other code" in other.said
    assert "sweep.redo=code" in other.said


@pytest.mark.slow
def test_redo_runs_the_results_of_other_code_again(sweep, started, code, place):
    sweep("lora.r=4,8", plan={"lora.r=8": "dropped"})
    (place / "s" / "lora.r=4" / "old").touch()
    assert started()
    assert sweep("lora.r=4,8", "sweep.redo=code").code == 0
    assert started() == [], "this code has computed them"
    code(*EDIT)
    redone = sweep("lora.r=4,8", "sweep.redo=code")
    assert (redone.code, marked(redone)) == (0, [])
    assert started() == ["pack-2:lora.r=4,lora.r=8"]
    assert not (place / "s" / "lora.r=4" / "old").exists()
    assert redone.statuses == {"lora.r=4": "completed", "lora.r=8": "completed"}
    again = sweep("lora.r=4,8", "sweep.redo=code")
    assert (started(), marked(again)) == ([], [])


@pytest.mark.slow
def test_a_cell_resumed_under_other_code_says_so(sweep, started, code):
    name = "lora=dora"
    sweep("lora=dora,r8", plan={name: "checkpoint"})
    started()
    code(*EDIT)
    ran = sweep("lora=dora,r8")
    assert started() == [f"cell-1:{name}"]
    assert f"1 cell ({name}) resumed from a checkpoint of other code" in ran.said
    assert marked(ran) == [name, "lora=r8"]
    code(EDIT[0])
    back = sweep("lora=dora,r8")
    assert marked(back) == [name], "two codes have computed it"


@pytest.mark.slow
def test_a_cell_that_diverged_under_other_code_is_tried_again(sweep, started, code):
    sweep("lora.r=4,8", plan={"lora.r=8": "diverged"})
    started()
    code(*EDIT)
    ran = sweep("lora.r=4,8")
    assert (ran.code, marked(ran)) == (0, ["lora.r=4"])
    assert [line.partition(":")[2] for line in started()] == ["lora.r=8"]


def test_the_only_thing_to_redo_is_code():
    (found,) = issues("-m", "lora.r=4,8", "sweep.redo=all")
    assert "sweep.redo" in found
    assert "code" in found


def test_a_folder_that_is_no_sweep_is_refused_and_left_alone(sweep, place):
    (place / "s").mkdir()
    (place / "s" / "multirun.yaml").write_text("mine")
    ran = sweep("lora.r=4,8")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "is not empty and is not a sweep folder" in ran.said
    assert (place / "s" / "multirun.yaml").read_text() == "mine"
    assert len(list((place / "s").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_do_not_run_one_sweep(sweep, place):
    sweep("lora.r=4,8")
    with holding(place / "s" / "jobs") as other:
        ran = sweep("lora.r=4,8")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert f"another process runs this sweep (host {socket.gethostname()}, pid {other})" in ran.said
    assert sweep("lora.r=4,8").code == 0


def test_an_exit_code_in_words():
    assert "SIGKILL; the kernel does so when memory runs out" in processes.how_it_ended(-9)
    assert processes.how_it_ended(75).endswith("exit code 75 (preempted)")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_children_and_says_how_to_resume(place, asked):
    process = hanging(place)
    (child,) = children_of(process)
    process.send_signal(asked)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == ExitCode.PREEMPTED
    assert not alive(child)
    record = json.loads((place / "s" / "sweep.json").read_text())
    assert [entry["status"] for entry in record["cells"]] == ["preempted"] * 2
    assert record["status"] == "preempted"
    assert "sweep preempted  2 cells: 2 preempted" in said
    assert "python -m runner -m lora.r=4,8 output_dir=s" in said.partition("resume with")[2]
    assert 'Traceback (most recent call last):\n  File "/' not in said.partition("ending 1 job")[0]
