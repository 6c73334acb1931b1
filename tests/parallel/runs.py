"""What tests of runs that several processes share have in common."""

from __future__ import annotations

import time
from pathlib import Path

from safetensors.torch import load_file

from helpers.command import TINY, Run
from parallel.forked import Leader

DDP = ("parallel=ddp", "parallel.num_processes=2")
# 21 rows in steps of 8: the last step of an epoch has 5, of which one process has its whole batch
WORDS = (
    *TINY,
    "data.max_rows=21",
    "data.eval_max_rows=5",
    "trainer.per_device_train_batch_size=4",
    "trainer.per_device_eval_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.max_steps=5",
    "trainer.learning_rate=1e-2",
    "trainer.save_strategy=no",
    "generation.samples=0",
    "data.metric=null",
)
SMALL = (*WORDS, "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1")


def distance(one: Run, other: Run) -> dict[str, float]:
    """The largest relative differences of losses, norms and weights of two runs."""
    logs = [run.lines("metrics.jsonl") for run in (one, other)]
    assert [set(line) for line in logs[0]] == [set(line) for line in logs[1]]
    found = {}
    for key in ("loss", "grad_norm", "eval_loss", "num_tokens"):
        pairs = [(a[key], b[key]) for a, b in zip(*logs, strict=True) if key in a]
        found[key] = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs) if pairs else 0.0
    weights = [load_file(next(run.folder.glob("*/*model.safetensors"))) for run in (one, other)]
    assert set(weights[0]) == set(weights[1])
    found["weights"] = max(
        float((weights[0][name] - weights[1][name]).norm() / weights[0][name].norm()) for name in weights[0]
    )
    return found


def await_line(folder: Path, count: int, leader: Leader) -> None:
    """Until the log has so many lines."""
    file, deadline = folder / "metrics.jsonl", time.monotonic() + 300
    while not file.is_file() or len(file.read_text(encoding="utf-8").splitlines()) < count:
        assert leader.code is None, leader.said
        assert time.monotonic() < deadline
        time.sleep(0.05)
