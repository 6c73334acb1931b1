"""Jobs of a sweep in one queue for its devices: where they run, what is started once more, how they end."""

import json
import os
import signal
from pathlib import Path

import pytest

from helpers.sweeps import alive, cells_of, children_of, hanging, ledger_of, wait_for
from runner.core.errors import ExitCode


def places(ran) -> dict[str, str]:
    return {entry["name"]: entry["device"] for entry in ran.record["cells"]}


def test_jobs_are_spread_over_the_devices(sweep, gpus):
    ran = sweep("lora.r=4,8", "lora.use_dora=false,true")
    assert ran.code == 0
    logs = {file.stem: file.read_text().split()[-1] for file in (ran.folder / "jobs").glob("*.log")}
    assert set(logs) == {"pack-1", "cell-1", "cell-2"}
    assert set(logs.values()) == {"0", "1"}
    for job in ran.record["jobs"]:
        for name in job["cells"]:
            assert places(ran)[name] == f"GPU {logs[job['name']]}"
            record = json.loads((ran.folder / name / "run.json").read_text())
            assert record["cell"]["device"] == places(ran)[name]
    assert "job pack-1 on" not in ran.said, "with several devices the output is in the logs"
    assert f"pack-1 on GPU {logs['pack-1']}: 2 cells" in ran.said
    assert "on     GPU 0, GPU 1" in ran.said


@pytest.mark.slow
def test_a_single_job_says_what_it_does_though_devices_are_idle(sweep, gpus, started):
    ran = sweep("lora.r=4,8,16", "sweep.halving=[0.5]", plan={"lora.r=4": "kill@GPU 0"})
    assert started() == ["pack-1:lora.r=4,lora.r=8,lora.r=16"] * 2
    assert "job pack-1 on 0\n" in ran.said
    assert "job pack-1 on 1\n" in ran.said
    assert ran.code == 0


@pytest.mark.slow
def test_one_device_says_what_its_processes_say(sweep, gpus):
    ran = sweep("lora.r=4,8", "sweep.devices=[1]")
    assert "job pack-1 on 1\n" in ran.said
    assert "── pack-1: 2 cells\n" in ran.said
    assert set(places(ran).values()) == {"GPU 1"}


def test_a_job_whose_process_dies_is_started_once_more_on_another_device(sweep, gpus, started):
    plan = {"lora.r=4": "kill@GPU 0", "lora.r=16": "wait"}  # so that GPU 0 is free first
    ran = sweep("lora.r=4,8,16,32", plan=plan)
    assert ran.code == 0
    assert sorted(started()) == [
        "pack-1:lora.r=4,lora.r=8",
        "pack-1:lora.r=4,lora.r=8",
        "pack-2:lora.r=16,lora.r=32",
    ]
    assert places(ran) == {f"lora.r={r}": "GPU 1" for r in (4, 8, 16, 32)}
    retried = {entry["name"]: entry["retried"] for entry in ran.record["cells"]}
    assert retried["lora.r=8"].startswith("GPU 0: its process was ended by SIGKILL")
    assert retried["lora.r=16"] is None
    assert "pack-1 on GPU 0: its process was ended by SIGKILL" in ran.said
    assert "2 cells once more on another device" in ran.said
    log = (ran.folder / "jobs" / "pack-1.log").read_text()
    assert (log.count("job pack-1 on 0"), log.count("job pack-1 on 1")) == (1, 1)


def test_with_one_device_it_is_started_once_more_there_and_then_failed(sweep, started):
    ran = sweep("lora.r=4,8,16", plan={"lora.r=8": "kill"})
    assert ran.code == ExitCode.FAILED
    assert started() == ["pack-1:lora.r=4,lora.r=8,lora.r=16", "pack-1:lora.r=8,lora.r=16"]
    assert ran.statuses == {"lora.r=4": "completed", "lora.r=8": "failed", "lora.r=16": "failed"}
    assert "about to die" in ran.record["cells"][1]["reason"]


OTHER_ENDS = [("failed", 1), ("exit@GPU 0", 2), ("diverged", 1), ("checkpoint", 1)]


@pytest.mark.parametrize(
    ("end", "starts"),
    [
        ("fault@GPU 0", 2),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHER_ENDS),
    ],
)
def test_only_a_process_that_died_or_a_device_that_failed_is_a_reason(sweep, gpus, started, end, starts):
    ran = sweep("lora.r=4", "lora.use_dora=true,false", plan={"lora.use_dora=true": end})
    jobs = [line.partition(":")[2] for line in started()]
    assert jobs.count("lora.r=4,lora.use_dora=true") + jobs.count("lora.use_dora=true") == starts
    assert (ran.code == 0) == (starts == 2)


def test_memory_that_ran_out_is_no_fault_of_the_device(tmp_path):
    made = cells_of(2, tmp_path)
    ledger, names = ledger_of(made, tmp_path), [cell.name for cell in made]
    for name, message in zip(names, ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"], strict=True):
        (tmp_path / name).mkdir()
        record = {"status": "failed", "error": {"type": "RuntimeError", "message": message}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    assert ledger.lost(names, killed=False) == []


@pytest.mark.slow
def test_each_batch_of_a_study_is_spread(sweep, gpus, started):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra optuna is not installed")
    study = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3")
    words = (*study, "hydra.sweeper.sampler.seed=1", "trainer.learning_rate=tag(log,interval(1e-5,1e-3))")
    ran = sweep(*words, "lora.r=8", plan={})
    assert ran.code == 0
    assert sorted(line.partition(":")[0] for line in started()) == ["cell-1", "cell-2", "pack-1", "pack-2"]
    assert len(ran.statuses) == 6
    assert set(places(ran).values()) == {"GPU 0", "GPU 1"}
    assert sweep(*words, "lora.r=8").code == 0
    assert started() == []


@pytest.mark.slow
def test_repeats_and_zipped_axes_are_spread(sweep, gpus, started):
    words = ("lora.r=4,8", "lora.lora_alpha=8,16", "sweep.zip=[lora.r,lora.lora_alpha]", "sweep.repeat=2")
    ran = sweep(*words)
    assert ran.code == 0
    assert [line.count("seed=") for line in started()] == [2, 2]
    assert len(ran.statuses) == 4


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGKILL])
def test_all_workers_end_with_their_sweep(place, asked):
    process = hanging(place, "sweep.devices=2", plan={"lora.r=4": "hang", "lora.r=8": "hang"})
    workers = children_of(process)
    assert len(workers) == 2
    process.send_signal(asked)
    said, _ = process.communicate(timeout=30)
    wait_for(lambda: not any(map(alive, workers)))
    if asked == signal.SIGTERM:
        assert process.returncode == ExitCode.PREEMPTED
        assert "ending 2 jobs" in said
        record = json.loads((place / "s" / "sweep.json").read_text())
        assert [entry["status"] for entry in record["cells"]] == ["preempted"] * 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_children_die_with_a_parent_that_is_killed(place):
    process = hanging(place)
    (child,) = children_of(process)
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: not alive(child))


@pytest.mark.slow
def test_a_pack_resumes_on_more_devices_and_on_fewer(sweep, gpus, started, place):
    words = "lora.r=4,8,16,32"
    names = [f"lora.r={r}" for r in (4, 8, 16, 32)]
    assert sweep(words, "sweep.devices=1", plan={"lora.r=4": "pack"}).code == ExitCode.PREEMPTED
    started()
    for name in names:  # as a pack begins
        (place / "s" / name).mkdir(exist_ok=True)
        (place / "s" / name / "metrics.jsonl").write_text("{}\n")
    ends = {"lora.r=4": "checkpoint", "lora.r=16": "checkpoint"}
    second = sweep(words, plan=ends)
    assert sorted(started()) == [f"pack-1:{names[0]},{names[1]}", f"pack-2:{names[2]},{names[3]}"]
    copied = place / "s" / "jobs" / "pack-2" / "1" / "checkpoints" / "checkpoint-1" / "of"
    assert copied.read_text() == "pack-1"
    assert (place / "s" / "lora.r=16" / "metrics.jsonl").exists()
    assert second.said.count("from its checkpoint") == 2
    third = sweep(words, "sweep.devices=1")
    assert third.code == 0
    assert started() == [f"pack-1:{names[0]},{names[1]}", f"pack-2:{names[2]},{names[3]}"]


@pytest.mark.slow
def test_cells_that_ran_alone_resume_alone_on_fewer_devices(sweep, gpus, started):
    plan = {"lora.r=4": "checkpoint", "lora.r=8": "checkpoint"}
    assert sweep("lora.r=4,8", plan=plan).code == ExitCode.PREEMPTED
    assert sorted(started()) == ["cell-1:lora.r=4", "cell-2:lora.r=8"]
    ran = sweep("lora.r=4,8,16,32", "sweep.devices=1")
    assert ran.code == 0
    assert started() == ["cell-1:lora.r=4", "cell-2:lora.r=8", "pack-1:lora.r=16,lora.r=32"]


@pytest.mark.slow
def test_a_changed_cell_of_a_pack_is_not_resumed(sweep, gpus, started, place):
    assert sweep("lora.r=4,8,16", "sweep.devices=1", plan={"lora.r=4": "pack"}).code == ExitCode.PREEMPTED
    started()
    ran = sweep("lora.r=4,8,16", "sweep.devices=1", "trainer.weight_decay=0.1")
    assert ran.code == 0
    assert "from its checkpoint" not in ran.said
    assert started() == ["pack-2:lora.r=4,lora.r=8,lora.r=16"]
