"""Duplicates by row, by prompt, and nearly; held-out rows that are the same for every seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.command import QUIET, TINY
from helpers.prepared import USER, answer, chat, jsonl, prepared, refusal, trained
from runner.config.settings import DataSettings, TemplateSettings
from runner.data.prepare import prepare
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer

LONG = "the quick brown fox jumps over the lazy dog and far away into the dark woods where none finds it "
CHINESE = "今天的天气非常好所以我们决定去公园散步然后在湖边吃午饭并且看了很多漂亮的花"


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


@pytest.mark.parametrize(
    ("by", "kept", "counts"),
    [
        (False, ["a", "a", "b", "c", "d"], {"repeated": 1}),
        (True, ["a", "b", "c", "d"], {"duplicate": 1}),
        ("exact", ["a", "b", "c", "d"], {"duplicate": 1}),
        ("prompt", ["a", "d"], {"duplicate prompt": 3}),
    ],
)
def test_duplicates_by_row_and_by_prompt(tmp_path: Path, by: Any, kept: list[str], counts: dict) -> None:
    asked = [pair("q", "a"), pair("q", "a"), pair("q", "b"), pair(" q\n", "c"), pair("z", "d")]
    data = prepared(jsonl(tmp_path / "a.jsonl", *asked), deduplicate=by)
    assert trained(data.train) == kept
    assert data.train.counts == {"read": 5, **counts}
    ((reason, count),) = counts.items()
    said = (
        "train: 1 rows repeat earlier ones" if reason == "repeated" else f"train: {count} of 5 rows dropped"
    )
    assert data.notes[0].startswith(said)


def test_the_same_prompt_in_all_formats(tmp_path: Path) -> None:
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "b", "rejected": "c"}]
    data = prepared(jsonl(tmp_path / "a.jsonl", *pairs), "preference", deduplicate="prompt")
    assert trained(data.train) == ["a / b"]
    labels = [{"text": "q", "label": "x"}, {"text": "q ", "label": "y"}, {"text": "z", "label": "y"}]
    data = prepared(jsonl(tmp_path / "a.jsonl", *labels), "classification", deduplicate="prompt")
    assert [row.label for row in data.train.rows] == ["x", "y"]
    system = {"role": "system", "content": "s"}
    chats = [chat(USER, answer()), chat(system, USER, answer()), chat(USER, answer("x"), USER, answer())]
    data = prepared(jsonl(tmp_path / "a.jsonl", *chats), deduplicate="prompt")
    assert data.train.counts == {"read": 3}


def test_a_text_with_another_class_is_another_row(tmp_path: Path) -> None:
    rows = [{"text": "b", "label": label} for label in ("x", "y", "x")]
    data = prepared(jsonl(tmp_path / "a.jsonl", *rows), "classification", deduplicate=True)
    assert [row.label for row in data.train.rows] == ["x", "y"]
    assert data.train.counts["duplicate"] == 1


def test_near_duplicates(tmp_path: Path) -> None:
    rows = [
        pair("q", LONG * 3),
        pair("q", LONG * 3 + "again"),
        pair("q", LONG.upper() * 3),
        pair("z", LONG + CHINESE),
        pair("c", CHINESE),
        pair("c", CHINESE + "。"),
        pair("s", "yes"),
        pair("s", "no"),
        pair("q", LONG * 3),
    ]
    data = prepared(jsonl(tmp_path / "a.jsonl", *rows), deduplicate="near")
    assert trained(data.train) == [LONG * 3, LONG + CHINESE, CHINESE, "yes", "no"]
    assert data.train.counts == {"read": 9, "duplicate": 1, "near duplicate": 3}
    assert "train: 3 of 9 rows dropped: near duplicate" in data.notes
    strict = prepared(jsonl(tmp_path / "a.jsonl", *rows), deduplicate="near", near_similarity=1.0)
    assert strict.train.counts["near duplicate"] == 2  # but for case and punctuation
    weighted = prepared([{"path": str(tmp_path / "a.jsonl"), "weight": 2}], deduplicate="near")
    assert sorted(trained(weighted.train)) == sorted(2 * trained(data.train))


def test_near_duplicates_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refusal(jsonl(tmp_path / "a.jsonl", pair("q", "a")), deduplicate="near")
    assert said.startswith("data.deduplicate=near: needs the package datasketch")
    assert "pip install 'recipe-runner[near-duplicates]'" in said


def test_a_wrong_kind_of_duplicates_is_refused(cli: Any, capsys: Any) -> None:
    jsonl(Path("a.jsonl"), pair("q", "a"))
    words = ("recipe=inspect", "model=tiny", "data=file", "data.path=a.jsonl")
    assert cli(*words, "data.deduplicate=promt").code == 2
    assert "prompt" in capsys.readouterr().err
    assert cli(*words, "data.near_similarity=1.5").code == 2
    assert "data.near_similarity=1.5 is out of range" in capsys.readouterr().err
    assert cli(*words, "data.near_similarity=0.9").code == 2
    assert "data.near_similarity has no effect without data.deduplicate=near" in capsys.readouterr().err
    assert cli(*words, "data.deduplicate=prompt", folder="by_prompt").code == 0


def of_seed(path: Any, seed: int, **data: Any) -> tuple[list[str], list[str]]:
    settings = DataSettings(path=path, cache=False, **data)
    made = prepare(settings, Renderer(byte_tokenizer(), TemplateSettings()), None, seed)
    return trained(made.train), trained(made.eval)


@pytest.mark.parametrize("options", [{}, {"eval_max_rows": 3}, {"deduplicate": True}, {"max_rows": 8}])
@pytest.mark.parametrize("weight", [1, 1.5, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_seed_holds_out_the_same_rows(tmp_path: Path, options: dict, weight: float) -> None:
    file = jsonl(tmp_path / "a.jsonl", *(pair(f"q{n}", f"answer {n}") for n in range(40)))
    path = [{"path": str(file), "weight": weight}]
    (first, held_out), (second, again) = (of_seed(path, seed, eval_split=0.25, **options) for seed in (0, 7))
    assert held_out == again
    assert (first == second) == ("max_rows" not in options)  # of those that remain the seed takes some
    assert of_seed(path, 0, eval_split=0.25, split_seed=7, **options)[1] != held_out


@pytest.mark.slow
def test_repeats_of_a_sweep_are_scored_on_the_same_rows(cli: Any, tmp_path: Path) -> None:
    jsonl(Path("a.jsonl"), *(pair(f"q{n}", f"answer {n}") for n in range(24)))
    data = ("data=file", "data.path=a.jsonl", "data.eval_split=0.2", "data.eval_max_rows=4")
    run = cli(*TINY, *QUIET, *data, "trainer.max_steps=1", "-m", "sweep.repeat=2", folder="sweep")
    assert run.code == 0
    records = [cell.parent for cell in run.folder.glob("*/run.json")]
    splits = [json.loads((cell / "run.json").read_text())["data"]["eval"]["fingerprint"] for cell in records]
    assert len(splits) == 2
    assert len(set(splits)) == 1
