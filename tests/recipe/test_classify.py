"""Sequence classification through the command line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.command import ADAPTER, RECORD, TINY

WORDS = ["sun", "moon", "star", "cat", "dog", "tree", "car", "house", "river", "road"]
ROWS = [
    {"text": f"the {word} is {mood}", "label": mood} for word in WORDS for mood in ("good", "bad", "so-so")
]
TRAIN = ("recipe=classify", "data=file", "data.path=train.jsonl", *TINY[:2], "trainer.save_strategy=no")


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.report
def test_classes_are_learnt_and_saved(cli):
    write("train.jsonl", ROWS[:24])
    write("test.jsonl", ROWS[24:])
    learn = ("trainer.learning_rate=0.02", "trainer.num_train_epochs=30", "data.eval_path=test.jsonl")
    run = cli(*TRAIN, *learn)
    assert run.code == 0
    assert run.files() == RECORD | ADAPTER
    metrics = run.record["metrics"]
    assert metrics["eval_accuracy"] > 0.6  # of three classes; all right on a CPU
    assert metrics["eval_f1"] > 0.5
    assert json.loads((run.folder / "adapter/base.json").read_text())["classes"] == ["bad", "good", "so-so"]
    assert any("score" in name for name in load_file(run.folder / "adapter/adapter_model.safetensors"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (ROWS[:1] * 3, ROWS[:1], "one class only"),
        (ROWS[:2], [{"text": "a", "label": "odd"}], "classes that no training row has: odd"),
        ([{"text": "a"}], ROWS[:1], "no 'label'"),
        ([{"text": "a", "label": None}], ROWS[:1], "'label' must be the name or number of a class"),
    ],
)
def test_rows_without_usable_classes_are_refused(cli, capsys, train, test, said):
    write("train.jsonl", train)
    write("test.jsonl", test)
    run = cli(*TRAIN, "data.eval_path=test.jsonl")
    assert run.code == 2
    assert not run.folder.exists()
    assert said in capsys.readouterr().err
