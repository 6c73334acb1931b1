"""Every cell of a pack is its solo run: the same losses, gradient norms and weights, step by step."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY
from helpers.packs import assert_equal, run_pack
from helpers.rows import ANSWERS
from runner.packed import passes
from runner.speed import decoder
from runner.speed.decoder import FastDecoder

# Uneven in every way: 23 rows of any length in batches of 3 and windows of 2 batches, two epochs, one cell
# shorter in rank.
BASE = (
    *TINY,
    *ANSWERS,
    "trainer.max_steps=-1",
    "trainer.num_train_epochs=2",
    "trainer.per_device_train_batch_size=3",
    "trainer.per_device_eval_batch_size=3",
    "trainer.gradient_accumulation_steps=2",
    "trainer.learning_rate=1e-3",
    "generation.samples=0",
)


ROW = '{"prompt": "What is %d squared?", "completion": "%d"}\n'

GRID = [
    ("lora.r=4", "lora.lora_alpha=8"),
    ("lora.r=8", "lora.lora_alpha=8", "trainer.learning_rate=3e-3", "trainer.max_grad_norm=0"),
    ("lora.r=3", "lora.use_rslora=true", "trainer.weight_decay=0.1", "trainer.max_grad_norm=0.01"),
    ("lora.r=4", "lora.lora_dropout=0.1", "trainer.warmup_steps=3", "trainer.lr_scheduler_type=linear"),
    ("lora.r=4", "lora.lora_dropout=0.3", "seed=0", "trainer.lr_scheduler_type=constant"),
]


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


class Replayed:
    """In place of CUDA graphs: the batch that one would be recorded for and replayed with, computed anew."""

    def __init__(self, forward: Any, *_: Any) -> None:
        self.forward = forward

    def record(self, inputs: Any, key: Any) -> None:
        """Nothing; the batch is that of ``replay``."""

    def replay(self, graph: None, inputs: Any, chosen: Any) -> Any:
        return self.forward(*inputs).flatten(0, 1).index_select(0, chosen)


def of_graphs(model: Any, pieces: Any, *others: Any, **more: Any) -> FastDecoder:
    return FastDecoder(model, dataclasses.replace(pieces, cuda_graphs=True), *others, **more)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "recorded"), itertools.product(("sft", "dpo"), (False, True)))
def test_uneven_rows_side_by_side_in_float64(cli, tmp_path, tiny_model, monkeypatch, recipe, recorded):
    """Of each cell in a line of its own; the line of another seed has other rows, and another length. Where
    graphs are recorded, the lines of a pack are filled up, and those of solo runs are not."""
    if recorded:
        monkeypatch.setattr(passes, "FastDecoder", of_graphs)
        monkeypatch.setattr(decoder, "Graphs", Replayed)
    lines = []
    before = FastDecoder._flat_hidden

    def watched(self: Any, input_ids: Any, *others: Any) -> Any:
        lines.append(len(input_ids))
        return before(self, input_ids, *others)

    monkeypatch.setattr(FastDecoder, "_flat_hidden", watched)
    rows = [{"prompt": "say", "completion": "yes " * (1 + number * 37 % 60)} for number in range(36)]
    base = (*BASE, "model.weights=pretrained", f"model.path={tiny_model}", "model.dtype=float64")
    base = (*base, "trainer.num_train_epochs=1", f"recipe={recipe}")
    if recipe == "dpo":
        rows = [
            {"prompt": "say", "chosen": row["completion"], "rejected": "no " * (1 + number * 53 % 71)}
            for number, row in enumerate(rows)
        ]
        base = (*base, "data.format=preference")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = (*base, "data=file", f"data.path={file}", "data.eval_path=null", "data.eval_split=0.1")
    grid = [("seed=0", "lora.lora_dropout=0.1"), ("seed=0", "lora.r=3"), ("seed=7", "lora.lora_dropout=0.2")]
    compare(cli, tmp_path, base, grid, 1e-8, 1e-8, 1e-8)
    assert lines.count(3) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("split", ["data.eval_split=0.2", "data.eval_split=0"])
def test_seeds_in_float64(cli, tmp_path, tiny_model, split):
    """Own initialisation, own order of rows, and where rows are split off, own rows; also a few at a time."""
    base = (*BASE, "model.weights=pretrained", f"model.path={tiny_model}", "model.dtype=float64", split)
    if split != "data.eval_split=0":
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(ROW % (number, number * number) for number in range(23)), encoding="utf-8")
        base = (*base, "data=file", f"data.path={rows}", "data.eval_path=null")
    grid = [
        (f"seed={seed}", "lora.lora_dropout=0.1", f"lora.r={rank}") for seed, rank in ((0, 4), (1, 8), (7, 4))
    ]
    compare(cli, tmp_path, base, grid, 1e-8, 1e-8, 1e-8, max_cells=2)


@pytest.mark.slow
def test_float32(cli, tmp_path):
    compare(cli, tmp_path, BASE, GRID, 1e-5, 1e-3, 1e-5)


@pytest.mark.slow
def test_gradient_checkpointing_in_float64(cli, tmp_path):
    base = (*BASE, "model.dtype=float64", "trainer.gradient_checkpointing=true")
    compare(cli, tmp_path, base, GRID[2:4], 1e-8, 1e-8, 1e-8)


@pytest.mark.slow
def test_nf4(cli, tmp_path):
    """Quantised bases compute in float32 here; the adapters differ by rounding alone."""
    compare(cli, tmp_path, (*BASE, "quantization=nf4"), GRID[:4], 1e-5, 1e-3, 1e-5)
