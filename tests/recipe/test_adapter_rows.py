"""Which rows a recipe reads that starts from an adapter: its run's, the user's own, never another task's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.command import Run
from recipes import OBJECTIVES
from runner.cli import run_config

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
ROWS = [{"prompt": f"Say {word}.", "completion": word} for word in WORDS]
HELD_OUT = [{"prompt": f"Please say {word}!", "completion": word} for word in WORDS[:4]]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in ROWS]
SHORT = (
    *("trainer.precision=fp32", "trainer.max_steps=1", "generation.max_new_tokens=2"),
    "trainer.save_strategy=no",
)
OWN = ("data=file", "data.path=train.jsonl", "data.eval_path=eval.jsonl")


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def places(run: Run) -> dict[str, list[str]]:
    """The files of each split that a run has recorded."""
    data = run.record["data"]
    return {name: [source["path"] for source in split["sources"]] for name, split in data.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An adapter that was trained on rows of its own, with the files beside its run."""
    from runner.__main__ import main

    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("train.jsonl", ROWS)
        write("eval.jsonl", HELD_OUT)
        write("pairs.jsonl", PAIRS)
        assert main(["model=tiny", *SHORT, *OWN, "output_dir=start"]) == 0
    return folder


@pytest.fixture
def start(made, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "start/adapter", tmp_path / "alone")
    return tmp_path


def test_training_goes_on_with_the_rows_of_the_run(cli, start):
    run = cli("adapter=start", *SHORT)
    assert run.code == 0
    assert places(run) == {"train": ["train.jsonl"], "eval": ["eval.jsonl"]}


@pytest.mark.slow
def test_rows_that_are_given_replace_held_out_ones_too(cli, start):
    run = cli("adapter=start", *SHORT, "data.path=eval.jsonl")
    assert run.code == 0
    assert places(run) == {"train": ["eval.jsonl"]}
    scored = cli(
        "recipe=evaluate", "adapter=start", "data.path=train.jsonl", "evaluate.metrics=[]", folder="s"
    )
    assert places(scored) == {"train": ["train.jsonl"]}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "words",
    [
        ("recipe=dpo", "adapter=start"),
        ("recipe=kto", "adapter=start"),
        ("recipe=sft", "adapter=alone"),
        ("recipe=evaluate", "adapter=alone"),
    ],
    ids=" ".join,
)
def test_the_embedded_rows_do_not_stand_in_for_others(cli, start, capsys, words):
    assert cli(*words, *SHORT).code == 2
    said = capsys.readouterr().err
    assert "data.path must be given" in said
    assert words[1] in said
    assert "data=file data.path=" in said


@pytest.mark.slow
def test_the_hint_works(cli, start):
    words = ("recipe=dpo", "adapter=start", *SHORT, "data=file", "data.path=pairs.jsonl")
    assert places(cli(*words)) == {"train": ["pairs.jsonl"]}
    words = ("recipe=evaluate", "adapter=alone", "trainer.precision=fp32", "evaluate.metrics=[]")
    run = cli(*words, "data=file", "data.path=eval.jsonl", folder="scored")
    assert places(run) == {"train": ["eval.jsonl"]}


def composed(*words: str):
    (run,) = run_config.check(run_config.parse(list(words), OBJECTIVES)).configs
    return run


def test_the_batch_size_and_the_seed_of_the_split_come_with_the_rows(start):
    config = start / "start/config.yaml"
    text = config.read_text(encoding="utf-8").replace("eval_path: eval.jsonl", "eval_path: null")
    text = text.replace("eval_split: 0.0", "eval_split: 0.2").replace("seed: 0\n", "seed: 7\n")
    config.write_text(text.replace("per_device_train_batch_size: 8", "per_device_train_batch_size: 3"))
    run = composed("adapter=start", *SHORT)
    assert (run.data.eval_split, run.seed, run.trainer["per_device_train_batch_size"]) == (0.2, 7, 3)
    run = composed("adapter=start", *SHORT, "seed=1", "trainer.per_device_train_batch_size=5")
    assert (run.seed, run.trainer["per_device_train_batch_size"]) == (1, 5)


@pytest.mark.slow
def test_a_chat_needs_no_rows_and_an_evaluation_only_those_it_scores(cli, start):
    Path("train.jsonl").rename("moved.jsonl")
    assert cli("recipe=chat", "adapter=start", "prompt=hi", "chat.max_new_tokens=2", folder="a").code == 0
    run = cli("recipe=evaluate", "adapter=start", "evaluate.metrics=[]", folder="b")
    assert run.code == 0
    assert places(run) == {"eval": ["eval.jsonl"]}
    assert any("train.jsonl is gone" in note for note in run.record["notes"])
    run = cli("recipe=evaluate", "adapter=start", "data.eval_path=moved.jsonl", folder="c")
    assert places(run) == {"eval": ["moved.jsonl"]}
    Path("eval.jsonl").unlink()
    assert cli("recipe=evaluate", "adapter=start", folder="d").code == 2
    assert cli("recipe=chat", "adapter=start", "prompt=hi", "chat.max_new_tokens=2", folder="e").code == 0


@pytest.mark.slow
def test_a_merge_compares_on_the_rows_that_are_at_hand(cli, start, capsys):
    alone = cli("recipe=merge", "adapter=alone", "trainer.precision=fp32", folder="a")
    assert places(alone) == {"train": ["embedded:orders_eval"]}
    Path("train.jsonl").unlink()
    held_out = cli("recipe=merge", "adapter=start", folder="b")
    assert places(held_out) == {"train": ["eval.jsonl"]}
    Path("eval.jsonl").unlink()
    samples = cli("recipe=merge", "adapter=start", "export=gguf", "gguf.kind=f32", folder="c")
    assert places(samples) == {"train": ["start/samples.jsonl"]}
    for run in (alone, held_out, samples):
        assert run.code == 0
        assert any("compared on rows of" in note for note in run.record["notes"])
    assert cli("recipe=merge", "adapter=start", "data.path=typo.jsonl", folder="d").code == 2
    assert "nothing is at 'typo.jsonl'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_run_says_which_rows_it_uses(cli, start, capsys):
    run = cli("model=tiny", *SHORT, "data.path=train.jsonl", "data.metric=null", "data.eval_max_rows=2")
    assert "of train.jsonl" in capsys.readouterr().out
    assert any("embedded:orders_eval, which is another task" in note for note in run.record["notes"])
    cli("recipe=evaluate", "adapter=start", "evaluate.metrics=[]", folder="scored")
    assert "rows 4 of eval.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        (("experiment=qwen3-4b-qlora", "model=smollm2-135m"), 1e-4),
        (("experiment=qwen2.5-7b-huanhuan", "model=smollm2-135m"), 1e-4),
        (("experiment=qwen3-4b-qlora", "model=smollm2-135m", "trainer.learning_rate=3e-4"), 3e-4),
        (("model=smollm2-135m",), 1e-3),
    ],
)
def test_an_experiment_keeps_its_learning_rate_with_another_model(tmp_path, monkeypatch, words, rate):
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", ROWS)
    assert composed(*words, "data.path=rows.jsonl").trainer["learning_rate"] == rate
