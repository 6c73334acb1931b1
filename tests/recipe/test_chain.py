"""Stages as one command: checked before the first runs, each in its own folder, skipped when complete."""

import json
from pathlib import Path

import pytest
import yaml

from helpers.command import TINY, one
from recipes.chain import _again
from runner.config.recipes.chain_rules import filled, stage_words
from runner.core.signals import Preempted

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


CHAIN = """
  - override /model: mine
seed: 7
trainer: {max_steps: 2, learning_rate: 1e-3, lr_scheduler_kwargs: {num_cycles: 1}}
generation: {samples: 0, max_new_tokens: 4}
template: {system: "{instruction} '${seed}'"}
stages:
  a: [recipe=sft, data=file, data.path=rows.jsonl]
  b: [recipe=evaluate, "adapter={a}", data.eval_max_rows=2, generation.max_new_tokens=2]
"""
SAVED = ("--config-path", "first, x=1", "--config-name", "config")


def with_options() -> list[str]:
    words = own(CHAIN.removeprefix("\n"))
    Path("mine/model").mkdir()
    Path("mine/model/mine.yaml").write_text("path: null\narchitecture: tiny\nweights: random\n")
    Path("rows.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n' * 4)
    return words


def configs(*folders: Path) -> list[dict]:
    return [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]


def test_stages_have_what_the_files_of_the_chain_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = one(*with_options(), "lora.r=4", "trainer.max_steps=3")
    assert run.stages is not None
    assert set(run.stages["*"]) == {
        "model=mine",
        "seed=7",
        "trainer.max_steps=3",
        "trainer.learning_rate=0.001",
        "trainer.lr_scheduler_kwargs={num_cycles: 1}",
        "generation.samples=0",
        "generation.max_new_tokens=4",
        r"template.system='{instruction} \'7\''",
        "lora.r=4",
    }
    words = stage_words(run.stages)
    assert words["a"][-3:] == ["recipe=sft", "data=file", "data.path=rows.jsonl"]
    assert [text for text in words["b"] if "max_new_tokens" in text] == ["generation.max_new_tokens=2"]


@pytest.mark.slow
def test_a_chain_is_repeated_from_its_config_and_resumed_as_it_was(cli, capsys):
    """In a folder whose name Hydra would not read unquoted."""
    words = [text for text in with_options() if "template" not in text]
    file = Path("mine/experiment/steps.yaml")
    file.write_text(file.read_text().replace("template:", "# "))
    first = cli(*words, folder="'first, x=1'")
    folder = first.folder.with_name("first, x=1")
    assert first.code == 0
    a, b = configs(folder / "a", folder / "b")
    assert (a["model"]["architecture"], a["seed"], a["trainer"]["max_steps"], b["seed"]) == ("tiny", 7, 2, 7)
    again = cli(*SAVED, "--config-dir", "mine", "seed=9", folder="again")
    assert again.code == 0
    a, b = configs(again.folder / "a", again.folder / "b")
    assert (a["model"]["architecture"], a["seed"], b["seed"]) == ("tiny", 9, 9)
    capsys.readouterr()
    assert cli(*words, "trainer.max_steps=1", "resume=auto", folder="'first, x=1'").code == 2
    assert "stages.a: has completed with trainer.max_steps=2, and has trainer.max_steps=1" in (
        capsys.readouterr().err
    )
    assert cli(*words, "resume=auto", folder="'first, x=1'").code == 0
    Path("rows.jsonl").write_text('{"prompt": "Why?", "completion": "So not."}\n' * 4)
    assert cli(*words, "resume=auto", folder="'first, x=1'").code == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adapter={a}", "adapter='/x y/a'"),
        ("model.path={a}/model", "model.path='/x y/a/model'"),
        ("adapter=[{a},{b}]", "adapter=['/x y/a','/x y/b']"),
        ("template.system='{a}'", "template.system='{a}'"),
        (r"template.stop=['it\'s {a}', {a}]", r"template.stop=['it\'s {a}', '/x y/a']"),
        ("data.columns={a: b}", "data.columns={a: b}"),
    ],
)
def test_a_stage_is_named_outside_of_quotes(text, expected):
    assert filled(text, lambda stage, rest: f"'/x y/{stage}{rest}'") == expected


MISTAKES = [
    ("stages: {sft: [recipe=sft, lora.rr=3]}", ["stages.sft: lora.rr=3", "'lora.r'"]),
    ('stages: {dpo: [recipe=dpo, "adapter={sft}"]}', ["names a stage that does not come before it"]),
    ("stages: {a/b: [recipe=sft]}", ["'a/b' cannot be a folder's name"]),
    ("stages: {sft: recipe=sft}", ["must be a list of overrides"]),
    ("seed: 1", ["recipe=chain needs stages"]),
    ("stages: {one: [recipe=sft], two: [recipe=dop]}", ["stages.two: recipe=dop", "did you mean"]),
    ('stages: {"*": [seed=3]}', ["recipe=chain needs stages"]),
    ('stages: {"*": ["adapter={one}"], one: [recipe=sft]}', ["names a stage that does not come before it"]),
]


def test_a_word_that_every_stage_sets_itself_has_no_effect(cli, capsys):
    stages = "stages={one: ['recipe=sft','seed=3'], two: ['recipe=sft','seed=4']}"
    assert cli("recipe=chain", stages, "seed=5").code == 2
    assert "seed=5: has no effect: every stage sets seed itself" in capsys.readouterr().err


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


@pytest.mark.parametrize("recipe", ["chain", "sft", None])
def test_an_interrupted_stage_leaves_the_remedy_to_its_chain(cli, capsys, monkeypatch, tmp_path, recipe):
    def ended(*_):
        raise Preempted("ended by SIGTERM after step 1")

    monkeypatch.setattr("recipes.run.train", ended)
    (tmp_path / "around").mkdir()
    (tmp_path / "around/config.yaml").touch()
    (tmp_path / "around/run.json").write_text(json.dumps({"recipe": recipe}) if recipe else "{")
    assert cli(*TINY, folder="around/a").code == 75
    assert ("resume with" in capsys.readouterr().err) == (recipe != "chain")


def test_a_chain_whose_config_is_damaged_is_not_resumed(cli, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("stages: [")
    (tmp_path / "run/run.json").write_text('{"recipe": "chain"}')
    assert cli("recipe=chain", "stages={a: ['recipe=sft']}", "resume=auto").code == 2
    assert "config.yaml: is damaged" in capsys.readouterr().err
