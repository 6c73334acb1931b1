"""A base in parts (``parallel=fsdp2``) of two processes: the losses, norms and weights of a whole one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.tiny_model import random_model, using
from parallel.forked import lead
from parallel.runs import DDP, SMALL, WORDS, await_line, distance

pytestmark = [
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores"),
    pytest.mark.usefixtures("forked"),
]

ANSWERS = ("generation.samples=1", "generation.rows=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "tied", "precision"),
    [
        ("none", True, "fp32"),
        ("nf4", True, "fp32"),
        ("nf4", False, "bf16"),
        ("none", False, "bf16"),
    ],
    ids=str,
)
def test_a_base_in_parts_is_a_whole_one(cli, tmp_path, base, tied, precision):
    words = (*SMALL, *ANSWERS, f"quantization={base}", "lora.lora_dropout=0.1", "trainer.eval_strategy=epoch")
    words += (f"trainer.precision={precision}",)
    if not tied:  # from files, whose embeddings stay on the host
        words += using(random_model(tmp_path / "model", "qwen3", vocab_size=512))
    whole, parts = cli(*words, *DDP, folder="whole"), cli(*words, *DDP, "parallel=fsdp2", folder="parts")
    assert (whole.code, parts.code) == (0, 0)
    assert max(distance(whole, parts).values()) == 0.0
    assert whole.lines("samples.jsonl") == parts.lines("samples.jsonl")


@pytest.mark.slow
def test_a_base_in_parts_has_rows_of_any_length(cli):
    # a model is tried with rows side by side once, where rows differ in length: here in one process alone
    rows = [
        {"prompt": f"Say {number}.", "completion": "so " * (40 if number == 10 else 1)}
        for number in range(10, 26)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = (*WORDS, "data=file", "data.path=rows.jsonl", "trainer.train_sampling_strategy=sequential")
    alone, parts = cli(*words, folder="alone"), cli(*words, *DDP, "parallel=fsdp2", folder="parts")
    assert (alone.code, parts.code) == (0, 0)
    assert max(distance(alone, parts).values()) < 1e-5


@pytest.mark.slow
def test_a_base_in_parts_resumes(cli, tmp_path):
    words = (*SMALL, "quantization=nf4", "trainer.max_steps=40", "trainer.learning_rate=1e-4")
    leader = lead(*words, *DDP, "parallel=fsdp2", folder=tmp_path / "run")
    await_line(tmp_path / "run", 2, leader)
    leader.terminate()
    assert leader.wait(60) == 75
    resumed, whole = cli(*words, "resume=auto"), cli(*words, folder="whole")
    assert max(distance(whole, resumed).values()) < 1e-4
