"""A mapping typed over one of a file, into which Hydra merges it: what stays of the file is said."""

from pathlib import Path

import pytest

from recipes import OBJECTIVES
from runner.__main__ import main
from runner.cli import run_config

FILE = """# @package _global_
trainer: {lr_scheduler_kwargs: {num_cycles: 2}}
lora: {r: 4, rank_pattern: {q_proj: 8, "layers.0": 2}}
"""
KWARGS = "trainer.lr_scheduler_kwargs={min_lr: 1e-5}"
ALONE = "in front of it leaves that out"


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/e.yaml").write_text(FILE)


def checked(*words: str) -> run_config.Checked:
    given = ["--config-dir", "own", "experiment=e", "model=tiny", *words]
    return run_config.check(run_config.parse(given, OBJECTIVES))


@pytest.mark.parametrize(
    ("words", "key", "left"),
    [
        ([KWARGS], "trainer.lr_scheduler_kwargs", "num_cycles (own/experiment/e.yaml:2)"),
        (
            ["lora.rank_pattern={k_proj: 4}"],
            "lora.rank_pattern",
            "q_proj, layers.0 (own/",
        ),
        (["-m", f"{KWARGS},{{min_lr: 1e-6}}"], "trainer.lr_scheduler_kwargs", "num_cycles"),
    ],
)
def test_what_stays_of_a_file_is_named_once(words, key, left):
    (note,) = checked(*words).notes
    assert f"what is typed for {key} is merged into what a file has there: it also has {left}" in note
    assert f"{key}=null {ALONE}" in note
    flags, typed = words[:-1], words[-1]
    alone = checked(*flags, f"{key}=null", typed)
    assert alone.notes == []
    section, _, name = key.partition(".")
    assert getattr(alone.configs[0], section)[name] in ({"min_lr": 1e-5}, {"k_proj": 4})


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.lr_scheduler_kwargs={num_cycles: 3}"],
        ["lora={r: 8}"],
        [KWARGS, "trainer.lr_scheduler_kwargs.num_cycles=3"],
        ["trainer.lr_scheduler_kwargs.min_lr=1e-5"],
    ],
)
def test_nothing_is_said_where_no_key_is_a_surprise(words):
    assert checked(*words).notes == []


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_it_is_printed_before_the_run(capsys, sweep, monkeypatch):
    monkeypatch.setattr("recipes.run.run_recipe", lambda *_, **__: 0)
    monkeypatch.setattr("runner.__main__._hand_over", lambda handle: 0)
    assert main(["--config-dir", "own", "experiment=e", "model=tiny", *sweep, KWARGS]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "it also has num_cycles" in printed
