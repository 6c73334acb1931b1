"""What a sweep says of its cells before the first one begins, and what it refuses there."""

import dataclasses
import json

import pytest

from helpers.command import QUIET, TINY
from helpers.sweeps import sweep_here
from runner.config.recipes.cards import CARDS, Card
from runner.plan import gpus
from runner.sweep import devices, processes, verdicts

GIB = 2**30
BASE = (*TINY, *QUIET, "trainer.max_steps=2")


@pytest.fixture
def card(monkeypatch):
    """Let the machine have a GPU of so much memory."""

    def use(gib: float, known: Card = CARDS["h200"]) -> None:
        monkeypatch.setattr(verdicts, "found_gpus", lambda: [(known, round(gib * GIB))])
        monkeypatch.setattr(verdicts, "version", lambda _: "2.11.0")
        monkeypatch.setattr(devices, "cuda_devices", lambda: ["0"])

    return use


@pytest.fixture
def idle(monkeypatch):
    """No job of a sweep does anything."""
    monkeypatch.setattr(processes, "WORKER", ["-c", ""])


def test_each_group_of_cells_has_a_verdict_before_the_first_begins(cli, capsys, card, idle):
    card(140)
    cli("-m", *BASE, "lora.r=2,4", "trainer.per_device_train_batch_size=1,24")
    said, began, _ = " ".join(capsys.readouterr().out.split()).partition("── pack-1")
    assert began
    assert said.count("fits h200, 140.0 GiB are free") == 2
    assert "plan pack-2: about" in said
    assert "plan pack-1: about" in said
    assert "of training (estimates)" in said


def test_a_sweep_of_cells_that_cannot_fit_is_refused_with_what_does(cli, capsys, card, idle):
    card(0.01)
    run = cli("-m", "model=qwen3-0.6b", "model.weights=random", "lora.r=2,4", *QUIET)
    said = capsys.readouterr().err
    assert run.code == 2
    assert "GiB, and 0.01 GiB of the GPU are free" in said.replace("\n", " ")
    assert "plan.check=false tries it" in said
    assert not run.folder.exists(), "nothing was begun"


@pytest.mark.slow
def test_the_refusal_names_the_cells_and_its_settings_fit(cli, capsys, card, idle):
    card(1.7)
    words = ("model=qwen3-0.6b", "model.weights=random", "lora.r=2,4", "trainer.max_length=512", *QUIET)
    batch = "trainer.per_device_train_batch_size"
    run = cli("-m", *words, f"{batch}=1,64", "trainer.optim=adamw_torch_fused")
    said = capsys.readouterr().err
    assert run.code == 2
    assert f"(in lora.r=2,{batch}=64 and 1 more)" in " ".join(said.split())
    hint = next(line for line in said.splitlines() if "plan.check=false" in line).partition(";")[0].split()
    kept = [word for word in hint if "=" in word]
    assert kept
    assert cli("-m", *words, f"{batch}=64", *kept).code != 2


@pytest.mark.slow
def test_plan_check_false_begins_the_cells(cli, capsys, card, idle):
    card(0.01)
    run = cli("-m", *BASE, "lora.r=2,4", "plan.check=false")
    assert "may not fit h200" in capsys.readouterr().out
    assert json.loads((run.folder / "sweep.json").read_text())["jobs"]


@pytest.mark.slow
def test_a_machine_without_a_gpu_refuses_nothing(cli, capsys, idle, monkeypatch):
    monkeypatch.setattr(devices, "cuda_devices", list)
    small = dataclasses.replace(gpus.this_machine(), free=2**20)
    monkeypatch.setattr(verdicts, "this_machine", lambda: small)
    cli("-m", *BASE, "lora.r=2,4")
    assert "may not fit the memory here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_rows_that_cannot_be_read_are_left_to_the_run(cli, capsys, card, idle, tmp_path):
    card(140)
    (tmp_path / "rows.jsonl").write_text('{"odd": 1}\n')
    cli("-m", *BASE, "lora.r=2,4", "data=file", "data.path=rows.jsonl", "data.max_rows=null")
    assert "[bold]plan" not in capsys.readouterr().out


def test_a_pack_says_and_records_it_and_compares_it(cli, capsys, monkeypatch):
    run, codes = sweep_here(cli, monkeypatch, *BASE, "lora.r=2,4")
    assert codes == [0]
    assert capsys.readouterr().out.count("(estimates)") == 2
    for name in ("lora.r=2", "lora.r=4"):
        record = json.loads((run.folder / name / "run.json").read_text())
        predicted = record["predicted"]
        assert predicted["peak_bytes"] > 2**27
        assert predicted["cells_per_pass"] == record["metrics"]["pack_cells_at_once"] == 2
        assert predicted["measured_peak_bytes"] == record["metrics"]["peak_memory_bytes"]
        assert predicted["measured_step_seconds"] > 0


def test_a_pack_that_cannot_fit_is_refused_before_its_base_is_loaded(cli, capsys, monkeypatch):
    from runner.training import load

    monkeypatch.setattr(load, "cuda_card", lambda: Card("small", GIB))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (2**12, GIB))
    monkeypatch.setattr("runner.packed.train_pack.load_model", lambda *_: pytest.fail("weights were loaded"))
    _, codes = sweep_here(cli, monkeypatch, *BASE, "lora.r=2,4")
    assert codes == [2]
    assert "plan.check=false" in capsys.readouterr().err


def test_the_plan_of_a_sweep_is_one_screen_and_trains_nothing(cli, capsys, idle):
    run = cli("-m", *BASE, "recipe=plan", "lora.r=2,4", "quantization=none,nf4", "plan.gpu=24GiB")
    said = " ".join(capsys.readouterr().out.split())
    assert run.code == 0
    assert not run.folder.exists()
    assert "pack-1 2 cells together" in said
    assert "plan pack-1, pack-2: about" in said, "those that read alike stand together"
    assert "fits 24 GiB, 24.0 GiB are free" in said
    assert "ready python -m runner -m model=tiny" in said
    assert "recipe=plan" not in said


def test_the_plan_of_a_sweep_of_another_trainer_is_ready_with_its_recipe(cli, capsys, idle):
    words = ("recipe=plan", "trainer=dpo", "data=orders-pairs", "model=qwen3-4b", "lora.r=2,4")
    assert cli("-m", *words, "plan.gpu=h100").code == 0
    said = capsys.readouterr().out
    assert "python -m runner recipe=dpo -m data=orders-pairs model=qwen3-4b lora.r=2,4" in said


@pytest.mark.slow
def test_many_jobs_that_read_alike_are_counted(cli, capsys, idle):
    ranks = ",".join(map(str, range(1, 12)))
    assert cli("-m", *BASE, "recipe=plan", "lora=dora", f"lora.r={ranks}").code == 0
    assert "plan each of 11 jobs: about" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_each_gpu_of_the_plan_has_a_verdict(cli, capsys, idle):
    """Brackets in the command that is ready to be run are no markup."""
    words = ("recipe=plan", "lora.r=2,4", "lora.target_modules=[q_proj]", "plan.gpu=rtx4090,h100")
    run = cli("-m", *BASE, *words)
    said = " ".join(capsys.readouterr().out.split())
    assert run.code == 0
    assert "plan pack-1: about" in said
    assert "fits rtx4090" in said
    assert "plan pack-2: about" in said
    assert "fits h100" in said
    assert "'lora.target_modules=[q_proj]'" in said


@pytest.mark.slow
def test_the_plan_of_a_sweep_says_what_cannot_fit(cli, capsys, idle):
    words = ("recipe=plan", "model=qwen3-8b", "lora.r=2,4", "plan.gpu=8GiB", "trainer.max_steps=2")
    assert cli("-m", *words, *QUIET).code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot fit 8 GiB" in said
    assert "cannot run lora.r=2, lora.r=4: a step takes at least" in said
    assert "no command: not all cells can be run" in said
    assert "ready" not in said


def test_a_command_is_ready_for_the_gpus_that_all_cells_can_run_on(cli, capsys, idle):
    """What is said to be needed is what is compared: with CUDA's context, 24.3 GiB of 24."""
    words = ("recipe=plan", "model=qwen3-8b", "lora=r16", "trainer.max_length=960,959")
    assert cli("-m", *words, "plan.gpu=8GiB,24GiB,a100").code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "24.3 GiB at the peak, CUDA's context included (estimates); may not fit 24 GiB, 24.0 GiB" in said
    assert "ready for 24GiB, a100 python -m runner -m model=qwen3-8b" in said
    assert cli("-m", *words, "plan.gpu=a100", "quantization=fp8", folder="fp8").code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "does not run on a100, which has no e4m3" in said
    assert "ready" not in said
