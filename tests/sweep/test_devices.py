"""A sweep on several devices: which there are, how the grid is split, and jobs whose process dies."""

import os
import subprocess

import pytest

from helpers.sweeps import cells_of, ledger_of, one
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
        subprocess,
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


@pytest.mark.sampled(4)
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
    jobs = make_jobs(made, {}, SweepSettings(halving=halving), slots, ledger_of(made, tmp_path))
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
    assert [len(job.cells) for job in make_jobs(made, {}, SweepSettings(), 1, ledger)] == [1, 3]
    assert [len(job.cells) for job in make_jobs(made, {}, SweepSettings(), 2, ledger)] == [3, 1]
