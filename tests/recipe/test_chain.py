"""Stages as one command: checked before the first runs, each in its own folder, skipped when complete."""

import json
from pathlib import Path

import pytest

from helpers.command import TINY
from recipes.chain import _again

STAGES = """
stages:
  sft: [recipe=sft]
  dpo: [recipe=dpo, "adapter={sft}"]
  merged: [recipe=merge, "adapter={dpo}"]
  last: [recipe=evaluate, "model.path={merged}", model.weights=pretrained, data=orders, data.eval_max_rows=2]
"""


def own(text: str) -> list[str]:
    """An experiment in a config folder of the user's own."""
    file = Path("mine/experiment/steps.yaml")
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\ndefaults:\n  - override /recipe: chain\n{text}")
    return ["--config-dir", "mine", "experiment=steps"]


@pytest.mark.report
@pytest.mark.slow
def test_each_stage_is_a_run_that_names_the_one_before(cli):
    run = cli(*own(STAGES), *TINY)
    assert run.code == 0
    records = {
        name: json.loads((run.folder / name / "run.json").read_text())
        for name in ("sft", "dpo", "merged", "last")
    }
    assert {record["status"] for record in records.values()} == {"completed"}
    assert [Path(parent["path"]).name for parent in records["dpo"]["parents"]] == ["sft"]
    assert [Path(parent["path"]).name for parent in records["merged"]["parents"]] == ["dpo"]
    assert [Path(parent["path"]).name for parent in records["last"]["parents"]] == ["merged"]
    assert records["dpo"]["metrics"]["steps"] == 3
    assert list(run.record["stages"]) == ["sft", "dpo", "merged", "last"]
    assert {path.name for path in run.folder.iterdir()} == {
        "config.yaml",
        "run.json",
        "report.html",
        "sft",
        "dpo",
        "merged",
        "last",
    }


@pytest.mark.slow
def test_a_failed_stage_ends_the_chain_and_a_second_start_goes_on_behind_it(cli):
    """The second stage has no room for its rows; the first is not trained again."""
    words = own(
        'stages:\n  sft: [recipe=sft]\n  more: [recipe=sft, "adapter={sft}", data.min_chars=100000]\n'
    )
    run = cli(*words, *TINY)
    assert run.code == 1
    assert run.record["status"] == "failed"
    first = (run.folder / "sft/run.json").read_text()
    assert not (run.folder / "more").exists()
    again = cli(*words, *TINY, "resume=auto")
    assert again.code == 1
    assert (again.folder / "sft/run.json").read_text() == first


MISTAKES = [
    ("stages: {sft: [recipe=sft, lora.rr=3]}", ["stages.sft: lora.rr=3", "'lora.r'"]),
    ('stages: {dpo: [recipe=dpo, "adapter={sft}"]}', ["names a stage that does not come before it"]),
    ("stages: {a/b: [recipe=sft]}", ["'a/b' cannot be a folder's name"]),
    ("stages: {sft: recipe=sft}", ["must be a list of overrides"]),
    ("seed: 1", ["recipe=chain needs stages"]),
    ("stages: {one: [recipe=sft], two: [recipe=dop]}", ["stages.two: recipe=dop", "did you mean"]),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_every_stage_is_checked_before_the_first_runs(cli, capsys, text, said):
    run = cli(*own(text))
    assert run.code == 2
    assert not run.folder.exists()
    printed = capsys.readouterr().err
    assert [part for part in said if part not in printed] == []


@pytest.mark.parametrize(("recipe", "words", "kept"), [("sft", ["resume=auto"], True), ("merge", [], False)])
def test_a_stage_that_was_killed_is_no_obstacle(tmp_path, recipe, words, kept):
    """One that trains resumes; what another has left is removed, as a run needs a folder of its own."""
    stage = tmp_path / "stage"
    assert _again(stage, recipe) == []
    stage.mkdir()
    (stage / "config.yaml").touch()
    assert _again(stage, recipe) == words
    assert (stage / "config.yaml").exists() is kept
