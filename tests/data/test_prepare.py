"""From files to labelled rows: what is dropped is counted and said, and the rest is what was meant."""

from pathlib import Path
from typing import Any

import pytest

from helpers.made_rows import ALPACA, SHAREGPT_PAIRS, made, written
from runner.config.settings import DataSettings, TemplateSettings
from runner.core.errors import ConfigError
from runner.data.prepare import Split, prepare
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer


def pairs(*said: tuple[str, str]) -> list[dict]:
    return [{"prompt": prompt, "completion": answer} for prompt, answer in said]


NUMBERED = pairs(*((f"question {n}", f"answer {n}") for n in range(40)))


def trained(split: Split | None) -> list[str]:
    assert split is not None
    renderer = Renderer(byte_tokenizer(), TemplateSettings())
    return [renderer.trained_text(row).removesuffix("<|im_end|>") for row in split.rows]


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        made(*args, **options)
    return str(caught.value)


def test_alpaca_rows(tmp_path: Path) -> None:
    data = made(written(tmp_path, ALPACA))
    renderer = Renderer(byte_tokenizer(), TemplateSettings())
    assert [renderer.trained_text(row) for row in data.train.rows] == [
        "1. Apple\n2. Pear\n\nEnjoy!<|im_end|>",
        "Good day<|im_end|>",
        "是啊，\n“瑞雪兆丰年”呢……<|im_end|>",
    ]
    assert renderer.tokenizer.decode(data.train.rows[1].input_ids) == (
        "<|im_start|>user\nTranslate.\nGuten Tag<|im_end|>\n<|im_start|>assistant\nGood day<|im_end|>"
    )
    assert (data.notes, data.eval) == ([], None)


def test_preference_rows_teach_the_chosen_answer(tmp_path: Path) -> None:
    data = made(written(tmp_path, SHAREGPT_PAIRS))
    assert trained(data.train) == ["Gladly!\n- You start.<|im_end|>Chess it is:\n1. e4", "Hello 🙂"]
    data = made(written(tmp_path, SHAREGPT_PAIRS), train_on="completion")
    assert trained(data.train) == ["Chess it is:\n1. e4", "Hello 🙂"]


def test_every_removed_row_is_counted_and_said(tmp_path: Path) -> None:
    said = (
        ("a", "yes"),
        ("b", " \n "),
        ("a", "yes"),
        ("c", "n"),
        ("d", "x" * 300),
        ("a", "no"),
        ("e", "y" * 90),
    )
    path = written(tmp_path, pairs(*said))
    data = made(path, max_length=100, deduplicate=True, min_chars=2, max_tokens=200, overlong="drop")
    assert trained(data.train) == ["yes", "no"]
    reasons = {
        "empty answer": 1,
        "duplicate": 1,
        "answer too short": 1,
        "more than max_tokens": 1,
        "longer than max_length": 1,
    }
    assert data.train.counts == {"read": 7, **reasons}
    assert sorted(data.notes) == sorted(f"train: 1 of 7 rows dropped: {reason}" for reason in reasons)
    assert data.train.record()["counts"] == {"read": 7, **reasons}
    kept = made(path)
    assert kept.train.counts == {"read": 7, "empty answer": 1, "repeated": 1}
    assert "train: 1 rows repeat earlier ones; data.deduplicate=true drops them" in kept.notes


def test_truncation_and_rows_that_lose_every_label(tmp_path: Path) -> None:
    path = written(tmp_path, pairs(("a", "x" * 100), ("b" * 100, "lost"), ("c", "whole")))
    data = made(path, max_length=60)
    assert [len(row.input_ids) for row in data.train.rows] == [60, len("user\nc\nassistant\nwhole") + 4]
    assert trained(data.train)[0] == "x" * (60 - len("user\na\nassistant\n") - 3)
    assert data.train.counts == {"read": 3, "truncated": 1, "all labels masked": 1}
    assert data.notes == [
        "train: 1 rows cut at max_length=60",
        "train: 1 rows dropped: their prompt alone fills max_length=60",
    ]
    said = refusal(path, max_length=10)
    assert "data (train): no row is left to train on: 3 read, 3 all labels masked" in said
    assert "raise trainer.max_length" in said
    assert "lower data.min_chars" in refusal(path, min_chars=1000)
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    both = call, {**call, "content": "So"}
    rows = [{"messages": [{"role": "user", "content": "q"}, each]} for each in both]
    assert "answer too short" not in made(written(tmp_path, rows, "calls.json"), min_chars=2).train.counts
    assert "3 all labels masked" in refusal(path, max_length=1, train_on="all")


def test_clean_and_what_it_makes_equal(tmp_path: Path) -> None:
    rows = pairs((" cafe\u0301\x00 ", "\ufeffa\r\nb\u200b "), ("café", "a\nb"), ("\u200b", "👩\u200d👧"))
    data = made(written(tmp_path, rows), clean=True, deduplicate=True)
    assert trained(data.train) == ["a\nb", "👩\u200d👧"]
    assert data.train.examples[0].messages[0]["content"] == "café"
    assert data.train.counts["duplicate"] == 1


def test_rows_that_differ_in_anything_rendered_are_no_duplicates(tmp_path: Path) -> None:
    call = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("one", "two")]
    user = {"role": "user", "content": "Go"}
    rows = [{"messages": [user, {"role": "assistant", "content": "Yes", "tool_calls": [c]}]} for c in call]
    assert made(written(tmp_path, rows), deduplicate=True).train.counts["duplicate"] == 0
    rows = [
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a\nb", "input": "", "output": "c"},
    ]
    assert len(made(written(tmp_path, rows), deduplicate=True).train.rows) == 2


def test_rows_repeated_by_their_weight_are_no_duplicates(tmp_path: Path) -> None:
    path = written(tmp_path, pairs(("a", "yes"), ("a", "yes"), ("b", "no")))
    data = made([{"path": path, "weight": 2}], deduplicate=True)
    assert sorted(trained(data.train)) == ["no", "no", "yes", "yes"]
    assert data.train.counts["duplicate"] == 2


def test_split_is_seeded_and_shares_no_row(tmp_path: Path) -> None:
    path = written(tmp_path, NUMBERED)
    first, again, other = (made(path, eval_split=0.25, split_seed=seed) for seed in (1, 1, 2))
    assert trained(first.eval) == trained(again.eval) != trained(other.eval)
    assert first.train.fingerprint == again.train.fingerprint
    for data in (first, other):
        assert len(trained(data.eval)) == 10
        assert sorted(trained(data.train) + trained(data.eval)) == sorted(r["completion"] for r in NUMBERED)
        assert data.train.counts["held out"] == 10


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(5))
def test_equal_rows_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    path = written(tmp_path, [*NUMBERED[:10], *NUMBERED[:10]])
    data = made([{"path": path, "weight": 2}], seed=seed, eval_split=0.2)
    held_out = trained(data.eval)
    assert not set(held_out) & set(trained(data.train))
    assert len(held_out) == len(set(held_out)) == 2
    assert len(trained(data.train)) == 32
    assert data.eval is not None
    assert data.eval.counts == {"read": 8, "duplicate": 6}


def test_a_split_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, pairs(("a", "b"))), eval_split=0.5)
    assert "no row is left to train on: 1 read, 1 held out" in said
    assert "data.eval_path instead of data.eval_split" in said


def test_row_limits(tmp_path: Path) -> None:
    path = written(tmp_path, NUMBERED)
    data = made(path, eval_split=0.5, max_rows=5, eval_max_rows=3)
    assert (len(data.train.rows), len(trained(data.eval))) == (5, 3)
    assert trained(data.train) == trained(made(path, eval_split=0.5, max_rows=5).train)
    assert "train: 15 of 40 rows dropped: over the row limit" in data.notes


def test_held_out_file_and_its_overlap(tmp_path: Path) -> None:
    path = written(tmp_path, NUMBERED)
    other = written(tmp_path, [*NUMBERED[:2], *pairs(("new", "row"))], "eval.json")
    data = made(path, eval_path=other)
    assert trained(data.eval) == ["answer 0", "answer 1", "row"]
    said = f"{other}, row 1 is {path}, row 1; {other}, row 2 is {path}, row 2"
    assert data.notes == [f"2 of 3 held-out rows are training rows too: {said}"]
    (tmp_path / "bad.jsonl").write_text("[]\n")
    other = written(tmp_path, [{"a": "b"}], "b.json")
    said = refusal(str(tmp_path / "bad.jsonl"), eval_path=other)
    assert "bad.jsonl" in said
    assert "b.json: the columns ['a'] fit no format" in said


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        [
            {"messages": [{"role": role, "content": "x"}, {"role": "assistant", "content": "y"}]}
            for role in ("user", "system", "user", "system")
        ],
    )
    strict = byte_tokenizer()
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + strict.chat_template
    )
    good = written(tmp_path, NUMBERED[:1], "good.json")
    renderer = Renderer(strict, TemplateSettings())
    data = prepare(DataSettings(path=[good, {"path": path, "weight": 2}]), renderer, None, 0)
    assert data.train.counts["rejected by the template"] == 4
    assert len(data.train.rows) == 5
    reason = "the template rejects it: no system role (dropped)"
    assert data.notes[-1] == f"train: 4 rows with {reason}, {path}, row 2 first"


def test_a_template_that_rejects_most_rows_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, pairs(*[(f"{number}", "y") for number in range(3)]))
    strict = byte_tokenizer()
    strict.chat_template = (
        "{% if messages[0].content != '1' %}{{ raise_exception('only one') }}{% endif %}"
        + strict.chat_template
    )
    with pytest.raises(ConfigError) as caught:
        prepare(DataSettings(path=path), Renderer(strict, TemplateSettings()), None, 0)
    assert [str(issue).partition(" (choose")[0].partition("\n")[0] for issue in caught.value.issues] == [
        "data (train): the chat template rejects 2 of 3 examples",
        *(f"{path}, row {row}: the template rejects it: only one" for row in (1, 3)),
    ]


def test_doubtful_rows_stay_and_are_said(tmp_path: Path) -> None:
    path = written(
        tmp_path, [*NUMBERED[:1], *pairs(("What is <|im_end|>?", "A token."), ("<|im_start|>", "Too."))]
    )
    data = made(path)
    assert len(data.train.rows) == 3
    assert data.notes == [f"train: 2 rows with control tokens in its words, {path}, row 2 first"]


def test_plain_text_rows(tmp_path: Path) -> None:
    data = made(written(tmp_path, [{"text": "one\n二"}, {"text": " "}]), train_on="all")
    assert trained(data.train) == ["one\n二"]
    assert data.train.counts["empty answer"] == 1
