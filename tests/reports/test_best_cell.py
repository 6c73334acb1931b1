"""A sweep's folder as ``adapter``: it stands for its best cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.sweep_folder import cell, make_sweep
from recipes import OBJECTIVES
from runner.cli.inherit import inherited
from runner.config.adapters import find_adapter
from runner.core.errors import ConfigError


def with_adapter(folder: Path, name: str, rank: int) -> None:
    """Give a cell an adapter and a config."""
    (folder / name / "adapter").mkdir()
    shape = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "base_model_name_or_path": "org/tiny"}
    (folder / name / "adapter" / "adapter_config.json").write_text(json.dumps(shape))
    config = {"model": {"path": "org/tiny"}, "lora": {"r": rank}, "seed": 3, "data": {"path": "rows.jsonl"}}
    (folder / name / "config.yaml").write_text(json.dumps(config))


def test_a_sweep_folder_stands_for_its_best_cell(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", [cell("lora.r=8", 0.5), cell("lora.r=16", 0.4)], best="lora.r=16")
    with_adapter(folder, "lora.r=8", 8)
    with_adapter(folder, "lora.r=16", 16)
    found = find_adapter(str(folder))
    assert found.run == folder / "lora.r=16"
    assert found.config["r"] == 16
    groups, others, _ = inherited([f"adapter={folder}", "recipe=evaluate"], [], OBJECTIVES)
    assert groups["lora"]["r"] == 16
    assert groups["model"] == {"path": "org/tiny"}
    assert groups["data"] == {"path": "rows.jsonl"}
    assert "seed=3" in others


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the sweep has no best cell (1 completed, 1 waiting)"),
        ({"status": "running"}, "the sweep has no best cell yet (1 completed, 1 waiting)"),
        ({"cells": []}, "(it has no cells)"),
        ({"cells": 3}, "sweep.json cannot be read"),
        ({"best": "lora.r=99"}, "its best cell 'lora.r=99' is not in the folder"),
        ({"best": "../elsewhere"}, "its best cell '../elsewhere' is not in the folder"),
        ({"best": "lora.r=8"}, "holds no adapter_config.json"),
    ],
)
def test_a_sweep_without_a_best_cell_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    cells = [cell("lora.r=8", 0.5), cell("lora.r=16", status="waiting")]
    with pytest.raises(ConfigError) as error:
        find_adapter(str(make_sweep(tmp_path / "sweep", cells, **changes)))
    assert reason in str(error.value)
