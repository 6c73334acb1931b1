"""Every cell of a pack of preference tuning is its solo run; the reference is computed once for them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Run
from safetensors.torch import load_file
from test_packed_equality import run_pack, tiny_model  # noqa: F401

from runner.pair_loss import FIGURES

# Uneven in every way: 11 pairs in batches of 2 and windows of 2 batches, two epochs, 3 held out.
BASE = (
    "recipe=dpo",
    *TINY[:-3],
    "trainer.max_steps=-1",
    "trainer.num_train_epochs=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.per_device_eval_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.learning_rate=3e-3",
    "data.max_rows=11",
    "data.eval_max_rows=3",
    "generation.samples=2",
    "generation.max_new_tokens=4",
)
DOUBLE = (*BASE, "model.dtype=float64")
GRID = [
    ("lora.r=4", "lora.lora_alpha=8"),
    ("lora.r=8", "trainer.beta=0.5", "trainer.learning_rate=1e-3", "trainer.max_grad_norm=0"),
    ("lora.r=3", "lora.use_rslora=true", "trainer.beta=0.02", "trainer.max_grad_norm=0.01"),
    ("lora.r=4", "trainer.weight_decay=0.1", "trainer.warmup_steps=2", "trainer.lr_scheduler_type=linear"),
]
LOSSES = [
    "[sigmoid]",
    "[hinge]",
    "[ipo]",
    "[exo_pair]",
    "[nca_pair]",
    "[robust]",
    "[bco_pair]",
    "[sppo_hard]",
    "[aot]",
    "[aot_unpaired]",
    "[apo_zero]",
    "[apo_down]",
    "[discopop]",
    "[sft]",
    "[sigmoid_norm]",
    "[sigmoid,sft]",
]


def assert_equal(solo: Run, packed: Run, figures: float, worst: float, median: float) -> None:
    """What is logged and measured to ``figures``; of the weights (relative) the worst tensor, the median."""
    ours, theirs = ([line for line in run.lines("metrics.jsonl") if "loss" in line] for run in (packed, solo))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-12)
        for name in ("loss", "grad_norm", *FIGURES):
            assert one[name] == pytest.approx(other[name], rel=figures, abs=figures), (name, one["step"])
        assert one["num_tokens"] == other["num_tokens"]
    ours, theirs = (
        [line for line in run.lines("metrics.jsonl") if "eval_loss" in line][-1] for run in (packed, solo)
    )
    for name in ("loss", *FIGURES):
        assert ours[f"eval_{name}"] == pytest.approx(theirs[f"eval_{name}"], rel=figures, abs=figures), name
    ours, theirs = (run.record["metrics"] for run in (packed, solo))
    for name in ("train_loss", "eval_loss", "eval_rewards_accuracies", "eval_rewards_margins"):
        assert ours[name] == pytest.approx(theirs[name], rel=figures, abs=figures), name
    for name in ("steps", "tokens", "trainable_parameters", "total_parameters"):
        assert ours[name] == theirs[name], name
    assert packed.record["parents"] == solo.record["parents"]
    weights = [load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (packed, solo)]
    assert weights[0].keys() == weights[1].keys()
    distances = [
        float((weights[0][key].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30))
        for key, value in weights[1].items()
    ]
    assert max(distances) <= worst
    assert float(torch.tensor(distances).median()) <= median


def compare(
    cli, tmp_path: Path, base: tuple[str, ...], grid: Any, *tolerances: float, **settings: Any
) -> list[Run]:
    packed = run_pack(tmp_path / "pack", base, grid, **settings)
    for number, overrides in enumerate(grid):
        solo = cli(*base, *overrides, folder=f"solo{number}")
        assert solo.code == 0
        assert_equal(solo, packed[number], *tolerances)
    return packed


def test_float64(cli, tmp_path):
    compare(cli, tmp_path, DOUBLE, GRID, 1e-8, 1e-8, 1e-8)
