"""Row 37: names lead into the folder they are meant for, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import TINY, Run
from helpers.sweeps import sweep_here
from runner.config.adapters import find_adapter
from runner.core.errors import ConfigError, ExitCode
from runner.core.folder_names import name_of
from runner.runs.run_folder import create

ESCAPES = ["../../x", "/tmp/x", "..", ".", "a/b", "a\\b", "~/x", "x\0y", "x\ny", "$(touch x)", "\u202e/../x"]


@pytest.mark.parametrize("value", ESCAPES)
def test_name_of_a_cell_is_one_plain_folder(value: str) -> None:
    name = name_of([f"data.path={value}"])
    assert name.startswith("data.path=")
    assert Path("sweep", name).parent == Path("sweep")
    assert not set("/\\\0\n$ ~\u202e") & set(name.removeprefix("data.path="))


@pytest.mark.parametrize("name", ESCAPES)
def test_name_of_a_run_is_one_plain_folder(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = create(None, name)
    assert (tmp_path / folder).resolve().parent.parent == tmp_path / "outputs"
    assert len([path for path in (tmp_path / "outputs").rglob("*") if path.is_dir()]) == 2  # day, run


@pytest.mark.sampled(2)
@pytest.mark.parametrize("launcher", ["packed", "basic"])
def test_values_of_a_sweep_stay_in_its_folder(
    cli: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """``data.path`` is an axis whose values climb out of the sweep's folder, or begin at the root."""
    rows = tmp_path / "a" / "b" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    text = "".join(json.dumps({"prompt": f"Say {n}.", "completion": str(n)}) + "\n" for n in range(4))
    for file in (rows, tmp_path / "rows.jsonl"):
        file.write_text(text, encoding="utf-8")
    before = set(tmp_path.iterdir())
    # the folder of a value such as ../../../rows.jsonl would be beside the sweep
    axis = f"data.path=a/b/../../rows.jsonl,{rows}"
    words = ("trainer.max_steps=1", "data=file", axis, "data.eval_path=null", f"hydra/launcher={launcher}")
    if launcher == "packed":
        run, codes = sweep_here(cli, monkeypatch, *TINY, *words)
        assert codes == [0, 0]
    else:
        run = cli("-m", *TINY, *words, folder="sweep")
        assert run.code == 0
    assert set(tmp_path.iterdir()) == before | {run.folder}
    cells = [path.parent for path in run.folder.rglob("run.json")]
    assert len(cells) == 2
    assert {cell.parent for cell in cells} == {run.folder}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words",
    [
        ["experiment=../../theirs"],
        ["model=../../theirs"],
        ["lora=/tmp/theirs"],
        ["-m", "output_dir=a,b"],
        ["recipe=chain", "stages={'../x': [recipe=sft]}"],
        ["recipe=chain", "stages={'..': [recipe=sft]}"],
        ["recipe=chain", "stages={'/tmp/x': [recipe=sft]}"],
    ],
)
def test_names_that_lead_elsewhere_are_refused(cli: Callable[..., Run], tmp_path: Path, words) -> None:
    folder = tmp_path / "deep" / "run"
    (tmp_path / "theirs.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert cli(*words, *TINY[1:], folder=str(folder)).code == ExitCode.CONFIG_ERROR
    assert {path.name for path in tmp_path.rglob("*")} == {"theirs.yaml"}


@pytest.mark.parametrize("best", ["../elsewhere", "/etc", "a/../../elsewhere", "link", ".", ""])
def test_best_cell_of_a_sweep_is_inside_it(tmp_path: Path, best: str) -> None:
    sweep, elsewhere = tmp_path / "sweep", tmp_path / "elsewhere"
    for folder in (sweep, elsewhere):
        folder.mkdir()
    (elsewhere / "adapter_config.json").write_text("{}", encoding="utf-8")
    (sweep / "link").symlink_to(elsewhere)
    text = json.dumps({"status": "completed", "best": best, "cells": []})
    (sweep / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        find_adapter(str(sweep))


def test_folder_that_is_a_link_to_a_full_one_is_refused(cli: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "run").symlink_to(tmp_path / "full")
    assert cli(*TINY).code == ExitCode.CONFIG_ERROR
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
