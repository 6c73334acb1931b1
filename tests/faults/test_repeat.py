"""Rows 39 and 40: an adapter fits its own base only, and the same run twice has the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY, Run
from helpers.paths import ROOT
from helpers.sweeps import sweep_here
from helpers.tiny_model import using, write_model
from runner.__main__ import main
from runner.core.errors import ExitCode

pytestmark = pytest.mark.slow

# Everything that draws random numbers or adds in an order of its own.
RANDOM = (
    *TINY,
    "lora.lora_dropout=0.2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.per_device_train_batch_size=3",
    "trainer.per_device_eval_batch_size=3",
    "data.eval_max_rows=7",
)
TIMES = ("seconds", "runtime", "per_second")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a model's folder; beside it the same model with other weights."""
    root = tmp_path_factory.mktemp("bases")
    own, _ = (write_model(root / name, seed) for seed, name in enumerate(("own", "other")))
    words = (*TINY[1:], "trainer.max_steps=1", *using(own), f"output_dir={root / 'run'}")
    assert main(list(words)) == 0
    return root / "run"


@pytest.mark.parametrize(
    "words",
    [
        (*TINY[1:],),
        ("recipe=dpo", *TINY[1:4]),
        ("recipe=merge",),
        ("recipe=evaluate",),
        ("recipe=chat", "prompt=hi"),
    ],
    ids=["sft", "dpo", "merge", "evaluate", "chat"],
)
def test_adapter_is_refused_on_another_base_of_its_shape(
    cli: Callable[..., Run], capfd, trained: Path, words: tuple[str, ...]
) -> None:
    run = cli(*words, f"adapter={trained / 'adapter'}", f"model.path={trained.parent / 'other'}")
    said = "".join(capfd.readouterr())
    assert run.code == ExitCode.CONFIG_ERROR
    assert "belongs to another base (weights xxh3:" in said
    assert not list(run.folder.rglob("*.safetensors"))


def test_adapter_is_refused_by_a_pack_on_another_base_of_its_shape(
    cli: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capfd, trained: Path
) -> None:
    words = (*TINY[1:], "trainer.learning_rate=1e-3,1e-4", f"adapter={trained / 'adapter'}")
    run, codes = sweep_here(cli, monkeypatch, *words, f"model.path={trained.parent / 'other'}")
    assert len(codes) == 1
    assert codes[0] != 0
    assert "belongs to another base (weights xxh3:" in "".join(capfd.readouterr())
    assert not list(run.folder.rglob("*.safetensors"))


def test_changed_weights_are_another_base(cli: Callable[..., Run], capsys, trained: Path) -> None:
    """The folder is the same, and so are the sizes of its files."""
    weights = trained.parent / "own" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + bytes(4))
        assert cli("recipe=chat", "prompt=hi", f"adapter={trained}").code == ExitCode.CONFIG_ERROR
    finally:
        weights.write_bytes(kept)
    assert "belongs to another base (weights" in capsys.readouterr().err


def run_twice(cli: Callable[..., Run], folder: Path, *words: str) -> list[Path]:
    """The same command in this process and in one of its own, where the order of sets is another."""
    command = [sys.executable, "-m", "runner", *words, f"output_dir={folder / 'second'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first = cli(*words, folder="first")
    assert first.code == 0
    return [first.folder, folder / "second"]


def without_times(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: line[key] for key in line if not key.endswith(TIMES)} for line in lines]


def same(first: Path, second: Path) -> set[str]:
    """Assert that two runs have the same results; the files that were compared byte for byte."""
    left, right = (
        {path.relative_to(run) for path in run.rglob("*") if path.is_file()} for run in (first, second)
    )
    assert left == right
    compared = {path for path in left if path.parts[0] == "adapter" and path.name != "README.md"}
    compared |= {path for path in left if path.name in ("samples.jsonl", "held_out.jsonl", "config.yaml")}
    for path in sorted(compared):
        assert (first / path).read_bytes() == (second / path).read_bytes(), path
    metrics = without_times(first / "metrics.jsonl")
    assert metrics == without_times(second / "metrics.jsonl")
    assert len({line["loss"] for line in metrics if "loss" in line}) > 1
    return {path.name for path in compared}


def test_same_run_has_the_same_bytes(cli: Callable[..., Run], tmp_path: Path) -> None:
    compared = same(*run_twice(cli, tmp_path, *RANDOM))
    assert {"adapter_model.safetensors", "adapter_config.json", "samples.jsonl"} <= compared


@pytest.mark.slow
def test_same_pack_has_the_same_bytes(cli: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in a process of its own, where the order of sets is another, and once in this one."""
    words = (*RANDOM, "lora.r=2,4", "trainer.learning_rate=1e-3,1e-2")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    run = cli("-m", *words, folder="first")
    again, codes = sweep_here(cli, monkeypatch, *words, folder="second")
    assert (run.code, codes) == (0, [0])
    first, second = run.folder, again.folder
    cells = [entry["name"] for entry in json.loads((first / "sweep.json").read_text())["cells"]]
    assert len(cells) == 4
    for cell in cells:
        assert json.loads((first / cell / "run.json").read_text())["metrics"]["pack_cells"] == 4
        assert {"adapter_model.safetensors", "samples.jsonl", "held_out.jsonl"} <= same(
            first / cell, second / cell
        )
    adapters = [(first / cell / "adapter" / "adapter_model.safetensors").read_bytes() for cell in cells]
    assert len(set(adapters)) == 4
