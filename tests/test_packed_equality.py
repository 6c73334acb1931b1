"""Every cell of a pack is its solo run: the same losses, gradient norms and weights, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import SweepSettings
from runner.packed.cell import CellRun
from runner.packed.train_pack import train_pack
from runner.runs.run_folder import RunFolder

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


def run_pack(
    folder: Path, base: Any, cells: Any, chosen: list[int] | None = None, **settings: Any
) -> list[Run]:
    """Train cells in one pack, as a sweep's worker does; with ``chosen`` only those of them."""
    packed = []
    for number in chosen or range(len(cells)):
        path = folder / str(number)
        (run,) = run_config.check(run_config.parse([*base, *cells[number]], OBJECTIVES))
        path.mkdir(parents=True, exist_ok=True)
        own = RunFolder(path, "test", list(cells[number]), run_config.to_yaml(run), run.seed)
        packed.append(CellRun(str(number), run, own))
    objective = OBJECTIVES[packed[0].config.recipe]
    later = train_pack(packed, objective, SweepSettings(**settings), folder / "work")
    assert not later
    return [Run(0, cell.folder.path) for cell in packed]


def assert_equal(solo: Run, packed: Run, loss: float, worst: float, median: float) -> None:
    """Losses and norms of each step to ``loss``; of weights (relative) the worst and the median tensor."""
    ours, theirs = ([line for line in run.lines("metrics.jsonl") if "loss" in line] for run in (packed, solo))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-12)
        for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy"):
            assert one[name] == pytest.approx(other[name], rel=loss, abs=loss), (name, one["step"])
        assert one["num_tokens"] == other["num_tokens"]
    assert packed.record["metrics"]["eval_loss"] == pytest.approx(
        solo.record["metrics"]["eval_loss"], rel=loss
    )
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


ROW = '{"prompt": "What is %d squared?", "completion": "%d"}\n'

GRID = [
    ("lora.r=4", "lora.lora_alpha=8"),
    ("lora.r=8", "lora.lora_alpha=8", "trainer.learning_rate=3e-3", "trainer.max_grad_norm=0"),
    ("lora.r=3", "lora.use_rslora=true", "trainer.weight_decay=0.1", "trainer.max_grad_norm=0.01"),
    ("lora.r=4", "lora.lora_dropout=0.1", "trainer.warmup_steps=3", "trainer.lr_scheduler_type=linear"),
    ("lora.r=4", "lora.lora_dropout=0.3", "seed=0", "trainer.lr_scheduler_type=constant"),
]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    """A checkpoint, so that the seed draws the adapter and the order but not the base."""
    from runner.models.model import _architecture, byte_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(_architecture("tiny"), dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def compare(
    cli, tmp_path: Path, base: tuple[str, ...], grid: Any, *tolerances: float, **settings: Any
) -> None:
    packed = run_pack(tmp_path / "pack", base, grid, **settings)
    for number, overrides in enumerate(grid):
        solo = cli(*base, *overrides, folder=f"solo{number}")
        assert solo.code == 0
        assert_equal(solo, packed[number], *tolerances)


def test_float64(cli, tmp_path):
    compare(cli, tmp_path, (*BASE, "model.dtype=float64"), GRID, 1e-8, 1e-8, 1e-8)


@pytest.mark.parametrize("split", ["data.eval_split=0", "data.eval_split=0.2"])
def test_seeds_in_float64(cli, tmp_path, tiny_model, split):
    """Own initialisation, own order of rows, and where rows are split off, own rows; also a few at a time."""
    base = (*BASE, "model.weights=pretrained", f"model.path={tiny_model}", "model.dtype=float64", split)
    if split != "data.eval_split=0":
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(ROW % (number, number * number) for number in range(23)), encoding="utf-8")
        base = (*base, "data=file", f"data.path={rows}", "data.max_rows=null")
    grid = [
        (f"seed={seed}", "lora.lora_dropout=0.1", f"lora.r={rank}") for seed, rank in ((0, 4), (1, 8), (7, 4))
    ]
    compare(cli, tmp_path, base, grid, 1e-8, 1e-8, 1e-8, max_cells=2)


def test_float32(cli, tmp_path):
    compare(cli, tmp_path, BASE, GRID, 1e-5, 1e-3, 1e-5)


def test_gradient_checkpointing_in_float64(cli, tmp_path):
    base = (*BASE, "model.dtype=float64", "trainer.gradient_checkpointing=true")
    compare(cli, tmp_path, base, GRID[2:4], 1e-8, 1e-8, 1e-8)


def test_nf4(cli, tmp_path):
    """Quantised bases compute in float32 here; the adapters differ by rounding alone."""
    compare(cli, tmp_path, (*BASE, "quantization=nf4"), GRID[:4], 1e-5, 1e-3, 1e-5)
