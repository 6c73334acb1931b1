"""A sweep on several devices: which there are, how the grid is split, and jobs whose process dies."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from helpers.sweeps import alive, cells_of, children_of, hanging, ledger_of, one, wait_for
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import SweepSettings
from runner.core.errors import ConfigError, ExitCode
from runner.sweep import devices
from runner.sweep.cells import expand
from runner.sweep.devices import choose
from runner.sweep.jobs import make_jobs
from runner.sweep.split import pieces


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as a sweep can see."""
    monkeypatch.setattr(devices, "cuda_devices", lambda: ["0", "1"])


@pytest.fixture
def cores(monkeypatch):
    """No GPU, and four cores."""
    monkeypatch.setattr(devices, "cuda_devices", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)


# --- which devices


def test_the_devices_that_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert devices.cuda_devices() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,1,0,-1,2")
    assert devices.cuda_devices() == ["1", "0"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert devices.cuda_devices() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(
        devices.subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], 0, "GPU 0: A\n  MIG 1g\nGPU 1: B\n", ""),
    )
    assert devices.cuda_devices() == ["0", "1"]
    assert [device.variables["CUDA_DEVICE_ORDER"] for device in choose("auto")] == ["PCI_BUS_ID"] * 2


@pytest.mark.parametrize(
    ("chosen", "together", "names"),
    [
        ("auto", False, ["4", "GPU-7", "6"]),
        (None, False, ["4", "GPU-7", "6"]),
        (2, False, ["4", "GPU-7"]),
        ([2, 0], False, ["6", "4"]),
        ("auto", True, ["4,GPU-7,6"]),
        ([0, 2], True, ["4,6"]),
    ],
)
def test_gpus_are_chosen_among_the_visible_ones(monkeypatch, chosen, together, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7,6")
    found = choose(chosen, together)
    assert [device.variables for device in found] == [{"CUDA_VISIBLE_DEVICES": name} for name in names]
    assert found[0].name.startswith(f"GPU {names[0]}")
    assert not any(device.cores for device in found)


def test_without_a_gpu_workers_share_the_cores(cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert [device.name for device in choose("auto")] == ["host"]
    first, second = choose(2)
    assert (first.name, first.cores) == ("cores 0-1", (0, 1))
    assert (second.name, second.cores) == ("cores 2,5", (2, 5))
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2", "RUNNER_WORKERS": "2"}
    assert first.variables == second.variables == threads
    assert sorted(core for device in choose(3) for core in device.cores) == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("visible", "chosen", "said"),
    [
        (["0", "1"], 3, ["sweep.devices=3", "2 CUDA devices (0, 1)", "1 to 2"]),
        (["0", "1"], [0, 2, 5], ["sweep.devices=[0,2,5]", "number 2 or 5", "from 0 to 1"]),
        (["3"], [3], ["no CUDA device has the number 3", "1 CUDA device (3)", "[0]"]),
        ([], 5, ["sweep.devices=5", "no CUDA device here, and 4 cores", "1 to 4 workers"]),
        ([], [0, 1], ["sweep.devices=[0,1]", "no CUDA device here", "1 to 4 workers"]),
    ],
)
def test_what_is_not_there_is_refused(cores, monkeypatch, visible, chosen, said):
    monkeypatch.setattr(devices, "cuda_devices", lambda: visible)
    with pytest.raises(ConfigError) as caught:
        choose(chosen)
    (issue,) = map(str, caught.value.issues)
    assert [text for text in said if text not in issue] == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sweep.devices=0", "at least 1"),
        ("sweep.devices=-1", "at least 1"),
        ("sweep.devices=[]", "a list of their numbers"),
        ("sweep.devices=[1,1]", "each device once"),
        ("sweep.devices=[-1]", "each device once"),
        ("sweep.devices=[0,cuda]", "sweep.devices"),
        ("sweep.devices=all", "auto"),
        ("sweep.devices=1.5", "sweep.devices"),
        ("sweep.devices=true", "sweep.devices"),
        ("sweep.devices={a: 1}", "sweep.devices"),
        ("sweep.devices=0,1", "'sweep.devices=[0,1]'"),
        ("sweep.device=2", "'sweep.devices'"),
    ],
)
def test_wrong_values_are_named(word, said):
    with pytest.raises(ConfigError) as caught:
        run_config.check(run_config.parse(["-m", "lora.r=4,8", word], OBJECTIVES))
    found = [str(issue) for issue in caught.value.issues]
    assert all(word.partition("=")[0] in issue for issue in found)
    assert any(said in issue for issue in found)


def test_more_devices_than_there_are_is_a_config_error_before_anything_begins(sweep, gpus, started):
    ran = sweep("lora.r=4,8", "sweep.devices=3")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "allowed: auto, or 1 to 2" in ran.said
    assert started() == []
    assert not ran.folder.exists()


# --- how a grid is split


@pytest.mark.parametrize(
    ("count", "slots", "halving", "sizes"),
    [
        (8, 1, None, [8]),
        (16, 2, None, [8, 8]),
        (8, 4, None, [2, 2, 2, 2]),
        (9, 4, None, [3, 3, 3]),
        (2, 4, None, [1, 1]),
        (8, 4, [0.5], [4, 4]),
        (3, 4, [0.5], [3]),
    ],
)
def test_a_large_group_is_split_evenly_over_the_devices(tmp_path, count, slots, halving, sizes):
    made = cells_of(count, tmp_path)
    jobs = make_jobs(made, SweepSettings(halving=halving), slots, ledger_of(made, tmp_path))
    assert [len(job.cells) for job in jobs] == sizes
    assert [cell for job in jobs for cell in job.cells] == made
    assert all((job.alone is None) == (len(job.cells) > 1) for job in jobs)


@pytest.mark.parametrize(
    ("sizes", "lone", "count", "parts"),
    [
        ([16], 0, 2, [2]),
        ([8, 8], 0, 2, [1, 1]),
        ([8, 8], 0, 3, [1, 1]),
        ([8, 8], 0, 4, [2, 2]),
        ([16, 4], 0, 2, [2, 2]),
        ([4, 2], 0, 1, [1, 1]),
        ([6], 6, 2, [1]),
        ([8], 1, 2, [2]),
        ([64], 100, 8, [2]),
        ([], 5, 2, []),
    ],
)
def test_groups_share_the_devices_with_no_more_packs_than_useful(sizes, lone, count, parts):
    assert pieces(sizes, 1, lone, count) == parts


def test_the_largest_jobs_come_first_on_several_devices(tmp_path):
    lone = expand(["lora.use_dora=true"], one("lora.use_dora=true"), SweepSettings(), tmp_path)
    made = [*lone, *cells_of(3, tmp_path)]
    ledger = ledger_of(made, tmp_path)
    assert [len(job.cells) for job in make_jobs(made, SweepSettings(), 1, ledger)] == [1, 3]
    assert [len(job.cells) for job in make_jobs(made, SweepSettings(), 2, ledger)] == [3, 1]


# --- one queue


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


def test_a_single_job_says_what_it_does_though_devices_are_idle(sweep, gpus, started):
    ran = sweep("lora.r=4,8,16", "sweep.halving=[0.5]", plan={"lora.r=4": "kill@GPU 0"})
    assert started() == ["pack-1:lora.r=4,lora.r=8,lora.r=16"] * 2
    assert "job pack-1 on 0\n" in ran.said
    assert "job pack-1 on 1\n" in ran.said
    assert ran.code == 0


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


OTHER_ENDS = [("exit@GPU 0", 2), ("diverged", 1), ("checkpoint", 1)]


@pytest.mark.parametrize(
    ("end", "starts"),
    [
        ("fault@GPU 0", 2),
        ("failed", 1),
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


# --- ending early, and resuming on other devices


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
@pytest.mark.parametrize("asked", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
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
