"""Sequence classification through the command line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import float32

from helpers.command import ADAPTER, QUIET, RECORD, TINY
from helpers.tiny_model import TINY_MODEL, using
from runner.models.model import byte_tokenizer, find_base, load_model

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


def classifier(folder: str, *classes: str) -> None:
    """A whole model with a head of classes, as a merge leaves it."""
    load_model(find_base(TINY_MODEL), None, float32, 0, [*classes]).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def kept(run) -> list[str]:
    return json.loads((run.folder / "adapter/base.json").read_text())["classes"]


@pytest.mark.slow
def test_an_adapter_that_is_trained_further_keeps_its_classes_and_their_order(cli):
    write("train.jsonl", ROWS)
    learn = ("trainer.learning_rate=0.02", "trainer.num_train_epochs=20")
    assert cli(*TRAIN, *QUIET, *learn, folder="start").code == 0
    write("some.jsonl", [row for row in ROWS if row["label"] != "bad"])
    words = ("data.path=some.jsonl", "data.eval_split=0.5", "trainer.learning_rate=0")
    run = cli(*TRAIN, *QUIET, *words, "adapter=start")
    assert kept(run) == ["bad", "good", "so-so"]
    assert run.record["metrics"]["eval_accuracy"] > 0.9


def test_a_checkpoint_that_is_trained_further_keeps_its_classes_and_their_order(cli, capsys):
    classifier("named", "so-so", "bad", "good")
    write("train.jsonl", [row for row in ROWS if row["label"] != "good"])
    words = (*TRAIN, *QUIET, *using(Path("named"))[1:], "trainer.max_steps=1")
    run = cli(*words)
    assert kept(run) == ["so-so", "bad", "good"]
    capsys.readouterr()
    write("train.jsonl", [*ROWS[:3], {"text": "x", "label": "Good"}, {"text": "y", "label": "odd"}])
    for more, way in (((), "on another model.path"), (("adapter=run",), "without adapter=")):
        assert cli(*words, *more, folder="refused").code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "data (train): rows have classes that the head of " in said
        assert "does not have: Good, odd" in said
        assert f"'Good' may be 'good'; the classes are: so-so, bad, good; {way}" in said


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (3, "3 outputs without names, which are taken for these classes, in this order: bad, good, so-so"),
        (4, "4 outputs without names, and the rows 3 classes: a new head is drawn"),
    ],
)
def test_what_becomes_of_a_head_without_names_is_said(cli, outputs, said):
    classifier("unnamed", *(f"LABEL_{number}" for number in range(outputs)))
    write("train.jsonl", ROWS)
    run = cli(*TRAIN, *QUIET, *using(Path("unnamed"))[1:], "trainer.max_steps=1")
    assert kept(run) == ["bad", "good", "so-so"]
    assert f"model.path=unnamed has a head of {said}" in run.record["notes"]


def test_an_adapter_with_classes_is_no_reward_model(cli, capsys):
    write("train.jsonl", ROWS)
    assert cli(*TRAIN, *QUIET, "trainer.max_steps=1", folder="start").code == 0
    write("pairs.jsonl", [{"prompt": word, "chosen": "yes", "rejected": "no"} for word in WORDS])
    assert cli("recipe=reward", "adapter=start", "data=file", "data.path=pairs.jsonl").code == 2
    assert "has a head of 3 classes, and a reward model gives one score" in capsys.readouterr().err


def test_a_class_that_is_neither_held_out_nor_predicted_does_not_count_in_macro_f1(cli):
    """As in scikit-learn's ``f1_score(average="macro")``."""
    write("train.jsonl", [*ROWS[:3], *({"text": f"fine {word}", "label": "good"} for word in WORDS * 2)])
    write("test.jsonl", [{"text": f"fine {word}!", "label": "good"} for word in WORDS[:4]])
    words = ("data.eval_path=test.jsonl", "trainer.learning_rate=0.05", "trainer.num_train_epochs=2")
    metrics = cli(*TRAIN, *QUIET, *words).record["metrics"]
    assert (metrics["eval_accuracy"], metrics["eval_f1"]) == (1.0, 1.0)


def test_the_held_out_loss_of_adalora_is_that_of_the_rows(cli):
    """At first it is that of any adapter; in training AdaLoRA's vectors are kept nearly orthogonal."""
    write("train.jsonl", ROWS)
    words = (*TRAIN, "data.eval_split=0.2", "trainer.learning_rate=0", "trainer.max_steps=1")
    runs = [cli(*words, f"lora={kind}", folder=kind).record["metrics"] for kind in ("adalora", "r8")]
    assert runs[0]["eval_loss"] == pytest.approx(runs[1]["eval_loss"], abs=1e-6)
    assert runs[0]["train_loss"] > runs[1]["train_loss"] + 0.5
