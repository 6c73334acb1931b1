"""Evaluation through the real command line: scores side by side, their differences, and what is refused."""

import json
from pathlib import Path

import pytest
import sacrebleu
import torch

from helpers.command import TINY
from runner.config.settings import ModelSettings
from runner.evaluation.bootstrap import enough
from runner.models.model import byte_tokenizer, find_base, load_model

TRAIN = (*TINY, "trainer.learning_rate=0.05", "trainer.save_strategy=no", "data.metric=null")
EVALUATE = ("recipe=evaluate", "generation.max_new_tokens=4")
ALONE = (*EVALUATE, *TINY[:2], "trainer.max_length=512", "data.max_rows=24", "data.eval_max_rows=4")
FILES = {"config.yaml", "run.json", "report.html", "evaluation.json", "samples.jsonl"}
SCORES = ["loss", "perplexity", "exact_match", "rouge_l", "json_valid", "chrf", "bleu"]
ROWS = [{"prompt": f"Say {word}.", "completion": word} for word in ("one", "two", "three", "four", "five")]


def found(run) -> dict:
    return json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.report
def test_base_and_adapter_are_scored_side_by_side(cli, parent, capsys):
    start = parent(*TRAIN)
    run = cli(*EVALUATE, "adapter=start")
    assert run.code == 0
    assert run.files() == FILES
    evaluation = found(run)
    assert list(evaluation["models"]) == ["base", "start"]
    assert list(evaluation["differences"]) == ["start"]
    base, tuned = evaluation["models"].values()
    assert list(base) == list(tuned) == list(evaluation["differences"]["start"]) == SCORES
    assert tuned["loss"]["value"] != base["loss"]["value"]
    assert tuned["loss"]["value"] == pytest.approx(start.record["metrics"]["eval_loss"], abs=1e-4)
    gap = evaluation["differences"]["start"]["loss"]
    assert gap["value"] == pytest.approx(tuned["loss"]["value"] - base["loss"]["value"])
    assert gap["low"] <= gap["value"] <= gap["high"] < 0
    assert run.record["metrics"]["loss"] == tuned["loss"]["value"]
    assert [Path(parent["path"]).name for parent in run.record["parents"]] == ["start"]
    sample = run.lines("samples.jsonl")[0]
    assert None not in (sample["before"], sample["before_match"], sample["after_match"])
    printed = capsys.readouterr().out
    assert "difference" in printed
    assert "95% interval" in printed
    assert "Evaluation" in (run.folder / "report.html").read_text()


@pytest.mark.slow
def test_several_adapters_are_each_compared_with_the_base(cli, parent):
    parent(*TRAIN, folder="one")
    parent(*TRAIN, "lora.r=4", "trainer.max_steps=2", folder="two")
    run = cli(*EVALUATE, "adapter=[one,two]")
    evaluation = found(run)
    assert list(evaluation["models"]) == ["base", "one", "two"]
    losses = [scores["loss"]["value"] for scores in evaluation["models"].values()]
    assert len(set(losses)) == 3
    assert run.record["metrics"]["loss"] == losses[2]
    assert len(run.record["parents"]) == 2
    alone = found(cli(*EVALUATE, "adapter=two", folder="alone"))
    assert alone["models"]["two"] == evaluation["models"]["two"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["base", "train", "lora.r=8,lr=0.1"])
def test_an_adapter_may_have_any_name(cli, parent, name):
    """One that stands for the base, one that is a method of PyTorch's modules, and a cell of a sweep."""
    parent(*TRAIN, folder=name)
    run = cli(*EVALUATE, f"adapter='{name}'", "evaluate.metrics=[]")
    assert run.code == 0
    base, tuned = found(run)["models"].values()
    assert base["loss"]["value"] != tuned["loss"]["value"]


def test_a_model_without_adapter_is_scored_alone(cli):
    run = cli(*ALONE)
    assert run.code == 0
    assert run.files() == FILES
    evaluation = found(run)
    assert list(evaluation["models"]) == ["model"]
    assert evaluation["differences"] == {}
    assert {sample["before"] for sample in run.lines("samples.jsonl")} == {None}


def test_a_saved_model_is_scored_by_its_folder(cli):
    """What a merge writes: weights and tokenizer in ``model/`` of a run folder."""
    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    load_model(base, None, torch.float32, 0).save_pretrained("merged/model")
    byte_tokenizer().save_pretrained("merged/model")
    drawn = found(cli(*ALONE))
    words = [word for word in ALONE if word != "model=tiny"]
    saved = cli(*words, "model.path=merged/model", "model.weights=pretrained", folder="saved")
    assert saved.code == 0
    assert found(saved)["models"]["model"]["loss"] == drawn["models"]["model"]["loss"]


def test_answers_are_scored_by_the_chosen_metrics(cli, answers):
    write("rows.jsonl", ROWS)
    said = ["one", " two\n", "tree", "", "five"]
    answers(said)
    words = ("data=file", "data.path=rows.jsonl", "data.eval_path=rows.jsonl", "data.eval_max_rows=null")
    run = cli(*ALONE, *words, "evaluate.metrics=[chrf,exact_match]")
    scores = found(run)["models"]["model"]
    assert list(scores) == ["loss", "perplexity", "chrf", "exact_match"]
    assert scores["exact_match"]["value"] == 0.6
    assert scores["exact_match"]["rows"] == 5
    chrf = sacrebleu.corpus_chrf(said, [[row["completion"] for row in ROWS]]).score
    assert scores["chrf"]["value"] == pytest.approx(chrf)
    assert scores["chrf"]["signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")
    assert "signature" not in scores["exact_match"]


def test_the_answer_that_is_asked_for_is_the_last_one_that_is_trained(cli, answers):
    turns = [("user", "Say one."), ("assistant", "one"), ("user", "And two?"), ("assistant", "three")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[-1]["weight"] = 0
    write("rows.jsonl", [{"messages": messages}] * 3)
    answers(["one", "one", "three"])
    run = cli(*ALONE, "data=file", "data.path=rows.jsonl", "evaluate.metrics=[exact_match]")
    assert found(run)["models"]["model"]["exact_match"]["value"] == pytest.approx(2 / 3)
    sample = run.lines("samples.jsonl")[0]
    assert (sample["prompt"], sample["expected"]) == ("Say one.", "one")


@pytest.mark.slow
def test_answers_that_became_right_are_more_than_noise_and_those_of_few_rows_are_not(cli, parent, answers):
    parent(*TRAIN)
    rows = [{"prompt": f"Say {number}.", "completion": str(number)} for number in range(20)]
    write("rows.jsonl", rows)
    chosen = ("evaluate.metrics=[exact_match]", "data=file", "data.path=rows.jsonl")
    words = (*EVALUATE, "adapter=start", *chosen)
    right, wrong = [row["completion"] for row in rows], ["?"] * 20
    for number, (base, tuned, significant) in enumerate(
        [
            (wrong, right, True),
            (right, wrong, True),
            (right, right, False),
            (wrong, wrong[:-1] + right[-1:], False),
        ]
    ):
        answers(base, tuned)
        gap = found(cli(*words, folder=f"run-{number}"))["differences"]["start"]["exact_match"]
        assert gap["significant"] is significant
    write("few.jsonl", rows[:4])
    answers(wrong[:4], right[:4])
    run = cli(*words, "data.path=few.jsonl", folder="few")
    few = found(run)["differences"]["start"]["exact_match"]
    assert (few["low"], few["significant"]) == (1, False)
    assert any("4 rows are too few" in note for note in run.record["notes"])
    assert (enough(5, 0.95), enough(6, 0.95), enough(4, 0.8)) == (False, True, True)


@pytest.mark.slow
def test_intervals_are_seeded_and_follow_their_settings(cli):
    words = (*ALONE, "evaluate.metrics=[]", "data.eval_max_rows=8")
    one, same = (cli(*words, folder=name) for name in ("one", "same"))
    assert found(one) == found(same)
    less = ("evaluate.confidence=0.5", "evaluate.resamples=300")
    wide, narrow = found(one), found(cli(*words, *less, folder="less"))
    assert (narrow["confidence"], narrow["resamples"]) == (0.5, 300)
    low, high = (narrow["models"]["model"]["loss"][bound] for bound in ("low", "high"))
    assert wide["models"]["model"]["loss"]["low"] < low < high < wide["models"]["model"]["loss"]["high"]


def test_no_metric_at_all_leaves_the_loss(cli):
    assert list(found(cli(*ALONE, "evaluate.metrics=[]"))["models"]["model"]) == ["loss", "perplexity"]


def test_rows_without_answers_have_a_loss_only(cli):
    write("rows.jsonl", [{"text": f"Row {number} has words."} for number in range(4)])
    words = ("data=text", "data.path=rows.jsonl", "data.eval_split=0.5", "evaluate.function=own.py:half")
    Path("own.py").write_text("def half(answer, expected):\n    return 0.5\n")
    run = cli(*ALONE, *words)
    assert run.code == 0
    assert run.files() == FILES
    assert list(found(run)["models"]["model"]) == ["loss", "perplexity"]
    assert run.lines("samples.jsonl") == []


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_base_that_is_scored_is_named_with_its_quantisation(cli, capsys, quantization):
    run = cli(*ALONE, "generation.rows=0", f"quantization={quantization}", "trainer.precision=bf16")
    assert run.code == 0
    expected = "nf4, bf16" if quantization == "nf4" else "bf16"
    assert f"evaluate  tiny (random weights), {expected}\n" in capsys.readouterr().out


def test_without_held_out_rows_all_are_scored_and_this_is_said(cli, capsys):
    write("rows.jsonl", ROWS)
    run = cli(*ALONE, "data=file", "data.path=rows.jsonl")
    assert run.code == 0
    assert any("no rows are held out" in note for note in run.record["notes"])
    assert "no rows are held out" in capsys.readouterr().out
    assert found(run)["models"]["model"]["loss"]["rows"] == 5


def test_fewer_rows_can_be_answered_than_are_in_the_loss(cli):
    run = cli(*ALONE, "generation.rows=2", "generation.samples=1")
    scores = found(run)["models"]["model"]
    assert (scores["loss"]["rows"], scores["exact_match"]["rows"]) == (4, 2)
    assert len(run.lines("samples.jsonl")) == 1


MISTAKES = [
    (["evaluate.metrics=[blue,exact_match]"], ["'blue' is not a metric", "'bleu'"]),
    (["evaluate.metrics=[3]"], ["3 is not a metric"]),
    (["evaluate.function=nowhere.py:half"], ["there is no file 'nowhere.py'"]),
    (["evaluate.function=half"], ["FILE.py:NAME"]),
    (["evaluate.function=own.txt:half"], ["FILE.py:NAME"]),
    (["evaluate.function=own.py:haff"], ["own.py defines no 'haff'", "'half'"]),
    (["evaluate.function=own.py:bleu"], ["bleu is the name of another score"]),
    (["evaluate.function=broken.py:half"], ["broken.py is not Python"]),
    (["evaluate.function=latin.py:half"], ["latin.py:1: byte 9 of the line is not UTF-8"]),
    (["evaluate.function=own.py:third"], ["running the file fails: TypeError", "'more'"]),
    (["evaluate.function=ends.py:half"], ["it ends the process with 'bye'"]),
    (["evaluate.function=needs.py:half"], ["running the file fails", "no_such_package"]),
    (["evaluate.metrics=[blue]", "evaluate.function=own.py:haff"], ["2 config errors"]),
    (["evaluate.confidence=95"], ["evaluate.confidence"]),
    (["evaluate.metric=[bleu]"], ["'evaluate.metrics'"]),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_mistakes_are_refused_before_anything_is_loaded(cli, capsys, monkeypatch, words, said):
    Path("latin.py").write_bytes(b"x = 'caf\xe9'\n")
    Path("own.py").write_text(
        "def half(answer, expected):\n    return 0.5\ndef bleu(a, b):\n    return 1\n"
        "def third(answer, expected, more):\n    return 1\n"
    )
    Path("ends.py").write_text("import sys\ndef half(a, b):\n    return 1\nsys.exit('bye')\n")
    Path("own.txt").write_text("def half(answer, expected):\n    return 0.5\n")
    Path("broken.py").write_text("def half(answer, expected:\n")
    Path("needs.py").write_text("import no_such_package\ndef half(answer, expected):\n    return 0.5\n")
    monkeypatch.setattr("recipes.evaluate.load_model", lambda *args: pytest.fail("weights were loaded"))
    run = cli(*ALONE, *words)
    assert run.code == 2
    assert not run.folder.exists()
    printed = capsys.readouterr().err
    assert [part for part in said if part not in printed] == []


def test_an_adapter_of_another_base_and_a_missing_one_are_refused(cli, parent, capsys):
    parent(*TRAIN)
    assert cli(*EVALUATE, "adapter=start", "seed=1").code == 2
    assert "belongs to another base" in capsys.readouterr().err
    assert cli(*EVALUATE, "adapter=[start,gone,lost]").code == 2
    printed = capsys.readouterr().err
    assert "gone" in printed
    assert "lost" in printed
    assert not Path("run").exists()


def test_adapters_of_several_kinds_take_a_run_each(cli, parent, capsys):
    parent(*TRAIN, folder="one")
    parent(*TRAIN, "lora=ia3", folder="two")
    assert cli(*EVALUATE, "adapter=[one,two]").code == 2
    assert "is of kind IA3, and one/adapter of kind LORA" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_folder_without_an_adapter_is_refused_and_nothing_is_left(cli, capsys):
    assert cli(*ALONE, folder="scores").code == 0
    assert cli(*ALONE, "adapter=scores").code == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_classifier_is_not_taken_for_a_language_model(cli, capsys):
    write("rows.jsonl", [{"text": f"number {number}", "label": "ab"[number % 2]} for number in range(8)])
    words = ("data=file", "data.path=rows.jsonl", "trainer.max_steps=1", "trainer.save_strategy=no")
    assert cli("recipe=classify", *TINY[:2], *words, folder="classes").code == 0
    assert cli(*ALONE, "adapter=classes").code == 2
    assert "SEQ_CLS" in capsys.readouterr().err


def test_the_answer_is_what_the_active_adapter_says(cli):
    """The adapter of a run that was trained long enough repeats its rows; its base does not."""
    write("rows.jsonl", [{"prompt": "hi", "completion": "aaaa"}] * 8)
    rows = ("data=file", "data.path=rows.jsonl", "trainer.max_steps=25")
    cli(*TRAIN, *rows, "lora.target_modules=all-linear", folder="start")
    scores = found(cli(*EVALUATE, "adapter=start"))["models"]
    assert scores["base"]["exact_match"]["value"] == 0
    assert scores["start"]["exact_match"]["value"] == 1
