"""Cells trained in one pack, without a sweep around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import Run
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.cli.saved_config import to_yaml
from runner.config.settings import SweepSettings
from runner.packed.cell import CellRun
from runner.packed.train_pack import train_pack
from runner.runs.run_folder import RunFolder


def run_pack(
    folder: Path, base: Any, cells: Any, chosen: list[int] | None = None, **settings: Any
) -> list[Run]:
    """Train cells in one pack, as a sweep's worker does; with ``chosen`` only those of them."""
    packed = []
    for number in range(len(cells)) if chosen is None else chosen:
        path = folder / str(number)
        (run,) = run_config.check(run_config.parse([*base, *cells[number]], OBJECTIVES)).configs
        path.mkdir(parents=True, exist_ok=True)
        own = RunFolder(path, "test", list(cells[number]), to_yaml(run), run.seed)
        packed.append(CellRun(str(number), run, own))
    if not packed:
        raise ValueError("a pack of no cells")
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
