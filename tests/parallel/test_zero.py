"""Full fine-tuning in parts, on DeepSpeed: the losses, norms, weights and checkpoints of one process."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.command import TINY, Run
from helpers.tiny_model import build, random_model, using
from parallel.forked import Change, lead
from parallel.runs import WORDS, await_line, distance
from runner.models.model import byte_tokenizer
from runner.parallel import processes
from runner.parallel.zero import ShardedOptimizer

# DeepSpeed compiles what adds up the processes of a CPU when it first runs
runs = [
    pytest.mark.slow,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores"),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed is not installed"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed has no C++ compiler here"),
]

TWO = ("lora=none", "parallel.num_processes=2")
ZERO2 = ("parallel=zero2", *TWO)
# small weights would stay whole
ZERO3 = ("parallel=zero3", *TWO, "parallel.stage3_param_persistence_threshold=0")
FULL = (*WORDS, "lora=none", "trainer.learning_rate=1e-3")
KEPT = ("trainer.save_strategy=steps", "trainer.save_steps=2")
ANSWERS = ("generation.samples=1", "generation.rows=2")
both_stages = pytest.mark.parametrize("zero", [ZERO2, ZERO3], ids=["zero2", "zero3"])


def shared(*words: str, folder: Path, change: Change | None = None) -> Run:
    """A run in processes of its own: the engine counts the weights of all models that a process has had."""
    return Run(lead(*words, folder=folder, change=change).wait(), folder)


def slow(test):
    """A test that runs DeepSpeed."""
    for mark in runs:
        test = mark(test)
    return test


@pytest.fixture
def odd(tmp_path) -> tuple[str, ...]:
    """A model whose weights two processes cannot have equal parts of, with a head of its own."""
    shape = {"hidden_size": 63, "vocab_size": 321, "num_attention_heads": 3, "num_key_value_heads": 1}
    return using(random_model(tmp_path / "odd", "llama", **shape, intermediate_size=95))


@slow
@both_stages
@pytest.mark.parametrize(
    "words",
    [
        (*ANSWERS, "trainer.eval_strategy=steps", "trainer.eval_steps=2"),
        ("trainer.gradient_checkpointing=true", "trainer.max_grad_norm=0"),
        ("parallel.offload_optimizer=cpu", "trainer.optim=sgd"),
        ("recipe=dpo", "trainer.eval_strategy=steps", "trainer.eval_steps=2"),
        ("trainer.load_best_model_at_end=true", "trainer.eval_strategy=steps", "trainer.eval_steps=2", *KEPT),
    ],
    ids=" ".join,
)
def test_a_step_is_that_of_one_process(cli, tmp_path, zero, words):
    own = [word for word in words if not word.startswith("parallel")]
    alone, parts = cli(*FULL, *own, folder="alone"), shared(*FULL, *words, *zero, folder=tmp_path / "parts")
    assert (alone.code, parts.code) == (0, 0)
    assert alone.files() == parts.files()
    found = distance(alone, parts)
    assert max(found.values()) < 1e-5, found
    assert parts.lines("samples.jsonl") == alone.lines("samples.jsonl")
    plain = AutoModelForCausalLM.from_pretrained(parts.folder / "model")
    assert all(torch.isfinite(each).all() and each.numel() for each in plain.parameters())


@slow
@both_stages
def test_a_signal_leaves_one_checkpoint_that_any_engine_resumes(cli, tmp_path, odd, zero):
    words = (*FULL, *odd, "trainer.max_steps=30")
    leader = lead(*words, *zero, folder=tmp_path / "run")
    await_line(tmp_path / "run", 2, leader)
    leader.terminate()
    assert leader.wait(60) == 75
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    AutoModelForCausalLM.from_pretrained(checkpoint)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    whole = cli(*words, folder="whole")
    for folder, engine in (("run", ()), ("again", zero)):
        resumed = shared(*words, *engine, "resume=auto", folder=tmp_path / folder)
        assert resumed.code == 0
        assert max(distance(whole, resumed).values()) < 1e-4


def break_follower(follows: bool) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken in the second process alone")

    if follows:
        ShardedOptimizer.clip_and_step = broken


@slow
@both_stages
def test_an_error_of_another_process_is_the_run_s(tmp_path, zero):
    run = shared(*FULL, *zero, folder=tmp_path / "run", change=break_follower)
    assert run.code == 1
    assert "process 1 of 2: broken in the second process alone" in run.record["error"]["message"]


backward = ShardedOptimizer.backward


def make_infinite(follows: bool) -> None:
    def infinite(optimizer: ShardedOptimizer, loss: torch.Tensor, last: bool) -> None:
        backward(optimizer, loss * float("inf"), last)

    ShardedOptimizer.backward = backward if follows else infinite


@slow
@both_stages
def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path, zero):
    run = shared(*FULL, *zero, folder=tmp_path / "run", change=make_infinite)
    assert run.code == 3
    assert "the gradient norm of step 1" in run.record["error"]["message"]


def test_weights_that_text_never_reaches_are_not_decayed(cli, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    build("gemma3").save_pretrained(tmp_path / "towers")
    byte_tokenizer().save_pretrained(tmp_path / "towers")
    run = cli(*TINY, *ZERO2, *using(tmp_path / "towers"), "trainer.weight_decay=0.1")
    assert run.code == 2
    assert "trainer.weight_decay=0, or parallel=ddp" in capsys.readouterr().err


REFUSED = [
    (("lora=r16",), "parallel=zero2", "lora=none"),
    (("lora=r16", "quantization=nf4"), "parallel=zero2", "parallel=fsdp2"),
    (("trainer.optim=adafactor",), "trainer.optim=adafactor", "adamw_torch_fused"),
    (("model.dtype=bfloat16",), "model.dtype=bfloat16", "float32"),
    (("trainer.torch_compile=true",), "trainer.torch_compile", "False"),
    (("trainer.precision=fp16",), "precision fp16", "bf16"),
    (("parallel.stage3_param_persistence_threshold=1",), "has no effect", "parallel=zero3"),
    (("parallel=ddp", "parallel.offload_optimizer=cpu"), "has no effect", "parallel=zero2"),
]


@pytest.mark.parametrize(("words", "said", "hint"), REFUSED, ids=lambda value: " ".join(value)[:40])
def test_what_cannot_be_in_parts_is_refused(cli, capsys, monkeypatch, words, said, hint):
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    run = cli(*TINY, *ZERO2, *words)
    assert run.code == 2
    found = capsys.readouterr().err
    assert said in found
    assert hint in found


def test_the_engine_is_an_extra(cli, capsys, monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    assert cli(*TINY, *ZERO2).code == 2
    assert "'.[deepspeed]'" in capsys.readouterr().err


def test_a_sweep_has_no_engine(cli, capsys, monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    assert cli("-m", *TINY, *ZERO2, "trainer.learning_rate=1e-4,1e-5").code == 2
    assert "parallel=zero2 in a sweep" in capsys.readouterr().err
