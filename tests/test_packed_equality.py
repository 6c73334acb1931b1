"""Every cell of a pack is its solo run: the same losses, gradient norms and weights, step by step."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Run
from safetensors.torch import load_file

from recipes.pack import PackedCell, train_pack
from runner import config
from runner.artifacts import RunFolder
from runner.settings import SweepSettings

# Uneven in every way: 23 rows in batches of 3 and windows of 2 batches, two epochs, one cell shorter in rank.
BASE = (
    *TINY,
    "data.max_rows=23",
    "trainer.max_steps=-1",
    "trainer.num_train_epochs=2",
    "trainer.per_device_train_batch_size=3",
    "trainer.per_device_eval_batch_size=3",
    "trainer.gradient_accumulation_steps=2",
    "trainer.learning_rate=1e-3",
    "generation.samples=2",
    "data.metric=null",
)


def run_pack(folder: Path, base: tuple[str, ...], cells: list[tuple[str, ...]], **settings: Any) -> list[Run]:
    """Train cells in one pack, as a sweep's worker does."""
    packed = []
    for number, overrides in enumerate(cells):
        (run,) = config.check(config.parse([*base, *overrides, f"output_dir={folder / str(number)}"]))
        (folder / str(number)).mkdir(parents=True)
        own = RunFolder(folder / str(number), "test", list(overrides), config.to_yaml(run), run.seed)
        packed.append(PackedCell(str(number), dataclasses.replace(run, output_dir=None), own))
    later = train_pack(packed, SweepSettings(**settings), folder / "work")
    assert not later
    return [Run(0, folder / str(number)) for number in range(len(cells))]


def assert_equal(solo: Run, packed: Run, loss: float, worst: float, median: float) -> None:
    """Losses and norms by step to ``loss``; weights to ``worst`` by tensor (relative), their median to ``median``."""
    ours, theirs = ([line for line in run.lines("metrics.jsonl") if "loss" in line] for run in (packed, solo))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-12)
        for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy"):
            assert one[name] == pytest.approx(other[name], rel=loss, abs=loss), (name, one["step"])
        assert one["num_tokens"] == other["num_tokens"]
    assert packed.record["metrics"]["eval_loss"] == pytest.approx(solo.record["metrics"]["eval_loss"], rel=loss)
    assert packed.record["metrics"]["trainable_parameters"] == solo.record["metrics"]["trainable_parameters"]
    assert packed.record["metrics"]["total_parameters"] == solo.record["metrics"]["total_parameters"]
    weights = [load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (packed, solo)]
    assert weights[0].keys() == weights[1].keys()
    distances = [
        float((weights[0][key].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30))
        for key, value in weights[1].items()
    ]
    assert max(distances) <= worst
    assert float(torch.tensor(distances).median()) <= median


GRID = [
    ("lora.r=4", "lora.lora_alpha=8"),
    ("lora.r=8", "lora.lora_alpha=8", "trainer.learning_rate=3e-3", "trainer.max_grad_norm=0"),
    ("lora.r=3", "lora.use_rslora=true", "trainer.weight_decay=0.1", "trainer.max_grad_norm=0.01"),
    ("lora.r=4", "lora.lora_dropout=0.1", "trainer.warmup_steps=3", "trainer.lr_scheduler_type=linear"),
    ("lora.r=4", "lora.lora_dropout=0.3", "seed=0", "trainer.lr_scheduler_type=constant"),
]


def test_float64(cli, tmp_path):
    base = (*BASE, "model.dtype=float64")
    packed = run_pack(tmp_path / "pack", base, GRID)
    for number, overrides in enumerate(GRID):
        solo = cli(*base, *overrides, folder=f"solo{number}")
        assert solo.code == 0
        assert_equal(solo, packed[number], 1e-8, 1e-8, 1e-8)
