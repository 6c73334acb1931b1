"""``recipe=benchmark``: what it leaves and prints, what it refuses, and the arithmetic of its figures."""

import dataclasses
import json
import sys

import pytest
import torch

import recipes.benchmark
from helpers.command import TINY
from helpers.paths import ROOT
from recipes import OBJECTIVES
from recipes.run import run_recipe
from runner.benchmark.flops import model_size
from runner.benchmark.meter import count_tokens, split
from runner.benchmark.processes import run_side
from runner.benchmark.results import summarised, summary
from runner.benchmark.table import lines
from runner.cli import run_config
from runner.plan.flops import ModelSize, step_flops

SHORT = (
    "recipe=benchmark",
    "model=tiny",
    "trainer.precision=fp32",
    "benchmark.steps=2",
    "benchmark.warmup=1",
)
BATCH = "trainer.per_device_train_batch_size=2"


def measured(step: float, tokens: int, padded: int, flops: float = 2e6, **more) -> dict:
    parts = {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 1.0, "gaps": 2.0}
    return {
        "step_seconds": [step, step, 4 * step],
        "tokens": [tokens] * 3,
        "padded_tokens": [padded] * 3,
        "labelled_tokens": [tokens] * 3,
        "flops": [flops] * 3,
        "split_ms": {"device": parts, "host": parts},
        "startup_seconds": 3.0,
        "matmul_flops_per_second": 1e9,
        "peak_rss_bytes": 2**30,
        "flags": {"use_liger_kernel": True},
        **more,
    }


@pytest.fixture
def in_this_process(monkeypatch):
    """The sides run one after the other in this process, which has imported torch already."""

    def run(command, job, work, log):
        file = work / "job.json"
        file.write_text(json.dumps({**job, "work": str(work), "result": str(work / "result.json")}))
        recipes.benchmark.main(file)
        return json.loads((work / "result.json").read_text())

    monkeypatch.setattr(recipes.benchmark, "run_side", run)
    monkeypatch.setattr("runner.benchmark.flops.matmul_rate", lambda *_: (1e10, 0.0))


def test_both_sides_are_measured_on_the_same_rows(cli, in_this_process, capfd):
    run = cli(*SHORT, BATCH, "benchmark.length=64", "against=[trl]")
    assert run.code == 0
    found = json.loads((run.folder / "benchmark.json").read_text())
    assert list(found["sides"]) == ["runner", "trl"]
    assert (found["recipe"], found["batch"], found["max_length"]) == ("sft", 2, 64)
    for side in found["sides"].values():
        assert side["tokens"] == side["padded_tokens"] == [128, 128]
        assert side["labelled_tokens"] == [126, 126]  # the first token of a row is predicted by none
        assert side["tokens_per_second"] == pytest.approx(256 / sum(side["step_seconds"]))
        assert side["mfu"] > 0
        parts = side["split_ms"]["device"]
        assert all(parts[name] > 0 for name in ("data", "forward", "backward", "optimizer"))
        assert "graph" not in parts
    out = capfd.readouterr().out
    assert all(text in out for text in ("runner", "trl", "tokens/s", "MFU", "forward", "gaps"))
    assert "optim=adamw_torch_fused" in out
    assert run.record["metrics"]["tokens_per_second"] == found["sides"]["runner"]["tokens_per_second"]
    assert run.files() >= {"benchmark.json", "run.json", "config.yaml"}
    assert not any(name.startswith((".sides", "adapter", "checkpoints")) for name in run.files())


@pytest.mark.slow
def test_pairs_are_as_long_as_wanted_on_both_sides(cli, in_this_process):
    run = cli(*SHORT, BATCH, "trainer=dpo", "benchmark.length=96", "against=trl")
    assert run.code == 0
    sides = json.loads((run.folder / "benchmark.json").read_text())["sides"]
    assert sides["runner"]["tokens"] == sides["trl"]["tokens"] == [384, 384]  # 2 pairs of 2 x 96
    assert sides["runner"]["labelled_tokens"] == sides["trl"]["labelled_tokens"]


def test_rows_of_the_config_and_their_padding(cli, in_this_process):
    run = cli(*TINY[:2], *SHORT, "data.max_rows=12", "trainer.max_length=512", BATCH)
    assert run.code == 0
    (side,) = json.loads((run.folder / "benchmark.json").read_text())["sides"].values()
    assert all(0 < real < padded for real, padded in zip(side["tokens"], side["padded_tokens"], strict=True))


def test_a_side_that_fails_is_said_and_the_others_are_kept(cli, in_this_process, monkeypatch, capfd):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("runner.benchmark.peers.peer_trainer", fail)
    run = cli(*SHORT, BATCH, "benchmark.length=64", "against=[trl]")
    assert run.code == 0
    sides = json.loads((run.folder / "benchmark.json").read_text())["sides"]
    assert sides["trl"]["error"].startswith("out of memory: CUDA out of memory. Tried to allocate 9 GiB")
    assert sides["runner"]["tokens_per_second"] > 0
    assert "trl failed  out of memory" in capfd.readouterr().out


def test_a_cell_of_a_sweep_is_measured(tmp_path, in_this_process):
    words = [*SHORT, BATCH, "benchmark.length=64"]
    (config,) = run_config.check(run_config.parse(words, OBJECTIVES)).configs
    cell = dataclasses.replace(config, output_dir=str(tmp_path / "cell"), resume="auto")  # as its worker does
    assert run_recipe(cell, "", words) == 0
    assert (tmp_path / "cell" / "benchmark.json").is_file()


@pytest.mark.slow
def test_each_side_in_a_process_of_its_own(cli):
    run = cli(*SHORT, BATCH, "benchmark.length=64", "against=[trl]")
    assert run.code == 0
    sides = json.loads((run.folder / "benchmark.json").read_text())["sides"]
    assert [side["tokens"] for side in sides.values()] == [[128, 128], [128, 128]]
    assert all(side["startup_seconds"] > 1 for side in sides.values())
    assert (run.folder / "logs" / "trl.log").is_file()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["against=[trl,trl-lige]"], "did you mean 'trl-liger'?"),
        (["against=[unsloth]"], "pip install unsloth"),
        (["against=[axolotl]"], "axolotl trains in a process of its own command"),
        (["benchmark.steps=0"], "benchmark.steps=0 is out of range"),
        (["benchmark.step=3"], "did you mean 'benchmark.steps'?"),
        (["benchmark.length=64", "data.path=rows.jsonl"], "contradicts data.path"),
        (["against=trl", "trainer=reward", "data=orders-pairs"], "trainer=reward is measured alone"),
        (["recipe=sft", "against=trl"], "against has no effect with recipe=sft"),
        (["recipe=sft", "benchmark.steps=3"], "benchmark.steps has no effect with recipe=sft"),
        (["trainer=dpo", "trainer.loss_type=sigmod"], "did you mean 'sigmoid'?"),
    ],
)
def test_config_errors(cli, capfd, words, message):
    assert cli("recipe=benchmark", "model=tiny", *words).code == 2
    assert message in capfd.readouterr().err


def test_a_missing_package_is_named(cli, capfd, monkeypatch):
    found = {"trl": object()}
    monkeypatch.setattr("runner.config.recipes.benchmark_rules.find_spec", found.get)
    assert cli("recipe=benchmark", "model=tiny", "against=[trl,trl-liger]").code == 2
    err = capfd.readouterr().err
    assert "1 config error" in err
    assert "pip install liger-kernel" in err


def test_rates_are_of_all_tokens_and_a_step_is_the_median():
    found = summary(measured(step=0.5, tokens=90, padded=120), matmul_rate=1e7)
    assert found["tokens_per_second"] == pytest.approx(270 / 3.0)
    assert found["padded_tokens_per_second"] == pytest.approx(360 / 3.0)
    assert (found["step_ms"], found["step_ms_least"], found["step_ms_most"]) == (500, 500, 2000)
    assert found["mfu"] == pytest.approx(6e6 / 3.0 / 1e7)


def test_tokens_without_padding():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    labels = torch.tensor([[-100, 6, 7, 8], [-100, 6, -100, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": ids, "labels": labels}
    assert count_tokens({**batch, "attention_mask": mask}, pad=0) == ([4, 2], 8, 4)
    assert count_tokens(batch, pad=0) == ([4, 2], 8, 4)  # nothing but the padding says it
    ended = {"input_ids": torch.tensor([[5, 0, 0]]), "labels": torch.tensor([[-100, 0, -100]])}
    assert count_tokens(ended, pad=0) == ([2], 3, 1)  # the end token is the one that pads
    packed = {"input_ids": ids.view(1, 8), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])}
    assert count_tokens(packed, pad=0) == ([3, 2, 3], 8, 0)
    pair = {"input_ids": ids, "attention_mask": mask, "completion_mask": mask}
    assert count_tokens(pair, pad=0) == ([4, 2], 8, 4)


def test_operations_of_a_step():
    size = ModelSize(frozen=1000, trained=100, head=500, head_trained=False, layers=2, width=8)
    lengths, labelled = [10, 6], 12
    attention = 3 * 2 * 2 * 8 * (10**2 + 6**2)  # forward and twice that backward; causal
    expected = 16 * (4 * 1000 + 6 * 100) + 12 * 4 * 500 + attention
    assert step_flops(size, lengths, labelled) == expected
    again = 16 * 2 * 1000 + 12 * 2 * 500 + attention / 3
    assert step_flops(size, lengths, labelled, reference=True) == expected + again


def test_size_of_a_model():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=1, **shape))
    linear = 2 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16)
    whole = model_size(model)
    assert whole == ModelSize(0, linear, head=8 * 32, head_trained=True, layers=2, width=8)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    tuned = model_size(get_peft_model(model, adapter))
    assert tuned == ModelSize(linear, 2 * 2 * (8 + 8), 8 * 32, head_trained=False, layers=2, width=8)


def test_parts_of_a_step():
    spans = [("data", 1.0), ("step", 7.0), ("forward", 2.0), ("backward", 4.0), ("optimizer", 1.0)]
    assert split(spans, 10.0) == {
        "data": 1.0,
        "forward": 2.0,
        "backward": 4.0,
        "optimizer": 1.0,
        "gaps": 2.0,
    }
    replayed = split([("data", 1.0), ("step", 7.0)], 10.0)
    assert (replayed["graph"], replayed["forward"], replayed["gaps"]) == (7.0, 0.0, 2.0)


def test_lines_of_the_table():
    sides = {
        "runner": measured(0.5, 90, 120),
        "trl": measured(1.0, 90, 120, matmul_flops_per_second=1e7),
        "trl-liger": {"error": "out of memory"},
    }
    table = dict(lines(summarised(sides)))
    assert table["tokens/s"] == ["90", "45", "failed"]
    assert table["  with padding"] == ["120", "60", "-"]
    assert table["  the first against it"] == ["1.00x", "2.00x", "-"]
    assert table["ms a step, median"] == ["500.0", "1,000.0", "-"]
    assert table["MFU"] == ["0.2%", "0.1%", "-"]  # of the best rate, 1e9
    assert table["  gaps"] == ["2.0", "2.0", "-"]
    assert "  graph" not in table
    assert "peak memory, reserved" not in table


def test_a_process_that_leaves_nothing(tmp_path):
    log = tmp_path / "side.log"
    ended = run_side(["-c", "import sys; print('no such device'); sys.exit(3)"], {}, tmp_path, log)
    assert ended == {"error": "exit code 3: no such device"}
    killed = run_side(["-c", "import os; os.kill(os.getpid(), 9)"], {}, tmp_path, log)
    assert killed["error"].startswith("ended by SIGKILL")


def test_speed_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = sys.modules.get("speed") or __import__("speed")
    first, broken, fp8 = speed.CELLS[4], speed.CELLS[6], speed.CELLS[5]
    sides = summarised({"runner": measured(0.5, 90, 120), "trl": measured(1.0, 90, 120)})
    packages = {"torch": "2.11.0", "trl": "1.16.0"}
    facts = {"started": "2026-11-29T07:00:00Z", "device": {"name": "NVIDIA H200"}, "packages": packages}
    found = {
        first.name: {**facts, "sides": sides},
        fp8.name: {**facts, "sides": summarised({"runner": measured(0.25, 90, 120)})},
        broken.name: {"error": "ended after 300 s, the limit"},
    }
    text = speed.markdown([first, fp8, broken], found)
    assert "2026-11-29, NVIDIA H200, torch 2.11.0, trl 1.16.0" in text
    assert "trl: use_liger_kernel=True." in text
    assert "| Qwen3-4B nf4 4x2048 | 45 | 90 | 2.00x | 0% | 500 ms | 1.0 / 1.0 GiB | 3 s |" in text
    assert "| Qwen3-4B fp8 4x2048 (others: nf4) | 45 | 180 | 4.00x |" in text
    assert "- Qwen3-8B bf16 2x4096: ended after 300 s, the limit" in text
