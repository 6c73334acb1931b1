"""``recipe=plan``: what it says of a config, without torch, and before anything is fetched."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from helpers.paths import ROOT
from runner.config.recipes.cards import CARDS, find_card
from runner.plan import gpus

GIB = 2**30


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("recipes.plan.found_cards", list)


def plan(run):
    assert run.code == 0
    return json.loads((run.folder / "plan.json").read_text())


def test_parts_of_the_memory_add_up_and_are_printed(cli, capsys):
    found = plan(cli("recipe=plan", "model=qwen3-8b", "quantization=nf4", "plan.gpu=rtx4090"))
    memory, said = found["memory"], capsys.readouterr().out
    assert sum(memory["parts_bytes"].values()) == memory["total_bytes"]
    assert found["parameters"] == 8_190_735_360
    assert "8,190,735,360" in said
    for label in (
        "base weights",
        "adapter",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "CUDA context",
    ):
        assert label in said
    assert all(len(line) <= 80 for line in said.split("ready")[0].splitlines())


def test_what_is_trained_is_the_share_that_a_run_says(cli, capsys):
    """Of all parameters, those of the adapter among them, as PEFT counts."""
    assert cli("recipe=plan", "model=tiny", "plan.gpu=24GiB").code == 0
    assert "106,816, trained 32,768 (23.48%)" in capsys.readouterr().out


def test_a_table_of_sizes_where_there_is_no_gpu(cli, capsys):
    found = plan(cli("recipe=plan", "model=qwen3-8b"))
    assert [card["name"] for card in found["cards"]] == [
        f"{size} GiB" for size in (8, 12, 16, 24, 40, 80, 141)
    ]
    fits = [card["fits"] for card in found["cards"]]
    assert fits == sorted(fits)
    assert not fits[0]
    assert fits[-1]
    assert "141 GiB" in capsys.readouterr().out


def test_a_config_too_large_becomes_one_that_fits(cli, capsys):
    words = ("model=qwen3-8b", "trainer.per_device_train_batch_size=16", "trainer.max_length=2048")
    first = plan(cli("recipe=plan", *words, "plan.gpu=24GiB"))
    assert not first["cards"][0]["fits"]
    assert "does not fit" in capsys.readouterr().out
    setting = first["cards"][0]["setting"]
    again = plan(
        cli(
            "recipe=plan", *words, *(f"{k}={v}" for k, v in setting.items()), "plan.gpu=24GiB", folder="again"
        )
    )
    assert again["cards"][0]["fits"]
    assert again["batch"] * again["gradient_accumulation_steps"] == 16
    # what is printed is what was asked for, with the changes
    command = first["command"].split()
    assert command[:3] == ["python", "-m", "runner"]
    assert set(command[3:]) >= {"model=qwen3-8b", *(f"{k}={v}" for k, v in setting.items())}
    assert not any(word.startswith(("recipe=plan", "plan.")) for word in command)


def test_the_largest_batch_fits_and_the_next_does_not(cli):
    words = ("recipe=plan", "model=qwen3-4b", "quantization=nf4", "plan.gpu=rtx3090")
    most = plan(cli(*words))["cards"][0]["largest_batch"]
    assert most > 1
    for rows, fits in ((most, True), (most + 1, False)):
        size = f"trainer.per_device_train_batch_size={rows}"
        assert plan(cli(*words, size, folder=f"rows-{rows}"))["cards"][0]["fits"] is fits


def test_a_quantised_base_is_advised_against_where_the_plain_one_fits(cli, capsys):
    found = plan(cli("recipe=plan", "model=qwen3-1.7b", "quantization=nf4", "plan.gpu=h100"))
    assert found["cards"][0]["setting"]["quantization"] == "none"
    assert "nf4 buys nothing here" in capsys.readouterr().out


def test_where_the_config_departs_from_what_is_published(cli, capsys):
    words = ("recipe=plan", "plan.gpu=rtx4090", "model=qwen3-4b", "trainer=dpo", "lora=r16")
    found = plan(cli(*words, "trainer.learning_rate=5e-3", "lora.lora_alpha=128"))
    said = capsys.readouterr().out
    assert {each["key"] for each in found["departures"]} == {"trainer.learning_rate", "lora.lora_alpha"}
    assert found["departures"][0]["override"] == "trainer.learning_rate=5e-6"  # of DPO, not of SFT
    assert all(each["override"] in said for each in found["departures"])


def test_what_is_usual_is_not_spoken_of(cli, capsys):
    assert plan(cli("recipe=plan", "plan.gpu=rtx4090", "model=qwen3-4b", "trainer=dpo"))["departures"] == []
    assert "unlike" not in capsys.readouterr().out


@pytest.mark.slow
def test_every_kind_of_settings_is_counted(cli):
    words = ("recipe=plan", "model=qwen3-1.7b", "trainer.per_device_train_batch_size=4")
    plain = plan(cli(*words))["memory"]["total_bytes"]
    options = ("lora.lora_dropout=0.1", "plan.cells=4", "trainer=dpo")
    for number, more in enumerate(options):
        extra = (more, "data=orders-pairs") if more == "trainer=dpo" else (more,)
        assert plan(cli(*words, *extra, folder=f"run-{number}"))["memory"]["total_bytes"] > plain, more


def test_a_card_without_the_number_format(cli, capsys):
    assert (
        plan(cli("recipe=plan", "model=qwen3-4b", "quantization=nf4", "plan.gpu=t4"))["precision"] == "fp16"
    )
    capsys.readouterr()
    words = ("recipe=plan", "model=qwen3-8b", "quantization=fp8")
    for gpu, base in {"a100": "none", "rtx3090": "nf4"}.items():
        (card,) = plan(cli(*words, f"plan.gpu={gpu}", folder=gpu))["cards"]
        assert card["setting"] == {"quantization": base}
        assert (card["fits"], card["largest_batch"], card["step_seconds"]) == (False, 0, None)
        said = capsys.readouterr().out
        assert f"does not run: {gpu} has no e4m3" in said
        assert "time: not estimated" in said


def test_a_cpu_without_the_number_format(cli, capsys):
    plan(cli("recipe=plan", "model=qwen3-4b", "quantization=fp8"))
    assert "on this CPU: does not run, it has no e4m3" in capsys.readouterr().out


def test_int8_that_does_not_fit_becomes_4_bits(cli):
    found = plan(cli("recipe=plan", "model=qwen3-8b", "quantization=int8", "plan.gpu=12GiB"))
    assert found["cards"][0]["setting"]["quantization"] == "nf4"


def test_what_does_not_fit_beside_the_weights_is_named(cli, capsys):
    """Each pass adds their updates to the weights of experts, however short its rows are."""
    words = ("recipe=plan", "model=qwen3-30b-a3b", "lora=r16")
    plan(cli(*words, "plan.gpu=80GiB"))
    assert "beside the weights, activations take 54.0 GiB of a row of any length" in capsys.readouterr().out
    plan(cli(*words, "plan.gpu=24GiB", folder="small"))
    assert "not even the weights fit" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_of_the_data_give_the_lengths(cli, capsys):
    found = plan(cli("recipe=plan", "model=tiny", "plan.gpu=8GiB"))
    assert found["rows"]["count"] == 480
    assert 400 < found["length"] < 1024
    assert "cover 99%" in capsys.readouterr().out


def test_an_experiment_whose_rows_are_not_there_yet(cli):
    found = plan(cli("recipe=plan", "experiment=qwen-7b-chat-qlora", "plan.gpu=24GiB"))
    assert (found["length"], found["batch"], found["quantization"]) == (512, 2, "nf4")
    assert found["rows"] is None


def test_training_still_wants_its_rows(cli, capsys):
    assert cli("experiment=qwen3-4b-qlora").code == 2
    assert "data.path must be given" in capsys.readouterr().err


def test_a_local_folder_is_read_without_its_weights(cli, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    facts = json.loads((ROOT / "runner/models/architectures/qwen3-0.6b.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"num_hidden_layers": 2}))
    (folder / "model.safetensors").touch()
    found = plan(cli("recipe=plan", f"model.path={folder}", "data.path=null", "plan.gpu=8GiB"))
    assert found["parameters"] < 596_049_920


def test_names_of_cards():
    for name, key in {
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H200": "h200",
        "Tesla T4": "t4",
        "NVIDIA RTX 6000 Ada Generation": "rtx6000ada",
        "NVIDIA L40S": "l40s",
    }.items():
        assert find_card(name) == CARDS[key], name
    assert find_card("24GB") == find_card("24")
    assert find_card("Radeon") is None


def test_cards_of_the_driver(monkeypatch):
    shown = "NVIDIA GeForce RTX 4090, 24564, 20000\nSomething, New, 50000, 49000\n[N/A]\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=shown))
    first, second = gpus.found_cards()
    assert (first.rate, first.memory) == (CARDS["rtx4090"].rate, 24564 * 2**20)
    assert (second.rate, second.memory) == (None, 50000 * 2**20)
    assert [free for _, free in gpus.found_gpus()] == [20000 * 2**20, 49000 * 2**20]


def test_torch_is_not_imported_and_it_takes_seconds(tmp_path):
    code = (
        "import sys; from runner.__main__ import main;"
        "code = main(['recipe=plan', 'model=qwen3-8b', 'quantization=nf4', 'plan.gpu=rtx4090']);"
        "print('torch' in sys.modules, 'transformers' in sys.modules); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNNER_CACHE": str(tmp_path / "cache")}
    began = time.process_time(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^False False$", done.stdout, re.M)
    assert time.monotonic() - began[1] < 20  # 2 s where nothing else runs


def test_several_gpus_share_the_rows_of_a_step(cli, capsys):
    words = ("recipe=plan", "model=qwen3-4b", "plan.gpu=h200", "trainer.per_device_train_batch_size=8")
    alone = plan(cli(*words, folder="one"))
    found = plan(cli(*words, "parallel=ddp", "parallel.num_processes=4", folder="four"))
    assert (found["gpus"], found["batch"], found["gradient_accumulation_steps"]) == (4, 2, 1)
    one, four = (each["memory"]["parts_bytes"] for each in (alone, found))
    assert four["base"] == one["base"]
    assert four["activations"] < one["activations"] / 2
    assert "8 rows, 2 x 1024 tokens a pass on each of 4 GPUs" in capsys.readouterr().out


KEEPS = "parallel.reshard_after_forward=false"


def test_a_base_in_parts_takes_less_of_each_gpu(cli, capsys):
    words = ("recipe=plan", "model=deepseek-r1-distill-llama-70b", "quantization=nf4", "plan.gpu=rtx4090")
    whole = plan(cli(*words, "parallel=ddp", "parallel.num_processes=2", folder="ddp"))
    parts = plan(cli(*words, "parallel=fsdp2", "parallel.num_processes=2", folder="fsdp2"))
    kept = plan(cli(*words, "parallel=fsdp2", "parallel.num_processes=2", KEEPS, folder="kept"))
    base = [each["memory"]["parts_bytes"]["base"] / 2**30 for each in (whole, parts, kept)]
    assert base[1] < 0.6 * base[0] < base[0] < base[2]
    assert "2 GPUs, each with a part" in " ".join(capsys.readouterr().out.split())


def test_what_is_trained_as_a_whole_takes_less_in_parts(cli):
    words = (
        "recipe=plan",
        "model=qwen3-8b",
        "lora=none",
        "plan.gpu=h100",
        "trainer.gradient_checkpointing=true",
    )
    many = ("parallel.num_processes=4", "parallel.reduce_bucket_size=1000")

    def parts(name: str, *more: str) -> dict[str, int]:
        return plan(cli(*words, *more, folder=name))["memory"]["parts_bytes"]

    copy = parts("ddp", "parallel=ddp", "parallel.num_processes=4")
    two, three = (parts(engine, f"parallel={engine}", *many) for engine in ("zero2", "zero3"))
    for each in (two, three):
        assert each["optimizer"] == pytest.approx(copy["optimizer"] / 4)
        assert each["gradients"] == pytest.approx(copy["gradients"] / 4, rel=1e-3)
    assert two["base"] == pytest.approx(1.25 * copy["base"])  # of which each takes the steps of a part
    assert three["base"] < 0.7 * copy["base"]
    host = parts("host", "parallel=zero3", *many, "parallel.offload_optimizer=cpu")
    assert "optimizer" not in host
    assert host["base"] == pytest.approx(1.25 * copy["base"])  # all of it again, when training has ended
