"""Scores, losses and intervals against hand-computed values and against the libraries' own."""

import math

import numpy as np
import pytest
import sacrebleu
import torch

from runner.config.settings import ModelSettings
from runner.data.labels import IGNORE, Encoded
from runner.evaluation.bootstrap import difference, interval
from runner.evaluation.metrics import (
    Measure,
    applicable_metrics,
    load_function,
    mean_of,
    measure,
    ratio,
    rouge_l,
)
from runner.evaluation.row_loss import row_losses
from runner.models.model import find_base, load_model

SAID = ["the cat sat on the mat", "a dog barked loudly at night", "", "it rains in 東京 today"]
WANTED = ["the cat sat on a mat", "the dog barked at night", "nothing was said", "it rains in 東京 today"]


@pytest.mark.parametrize(
    ("name", "answers", "expected", "value"),
    [
        ("exact_match", ["a", " b\n", "C", ""], ["a", "b", "c", "d"], 0.5),
        ("json_valid", ["{}", '{"a": 1}x', "[1, 2]\n", "null", ""], ["{}"] * 5, 0.6),
        ("json_valid", ["NaN", '{"a": -Infinity}'], ["{}"] * 2, 0.0),
        ("rouge_l", ["a b", "x"], ["a b", "y"], 0.5),
        ("exact_match", ["x"], ["x"], 1.0),
    ],
)
def test_means_of_rows(name, answers, expected, value):
    assert measure(name, answers, expected).value == pytest.approx(value)


def test_brackets_without_end_are_not_json():
    assert measure("json_valid", ["[" * 100_000], ["[]"]).value == 0


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # Lin 2004, his example 2
        ("the gunman kill police", "police kill the gunman", 2 / 4),  # Lin 2004, his example 3
        ("a b c d", "a c", 2 * 2 / 6),
        ("b a", "a b", 2 * 1 / 4),
        ("The CAT, sat.", "the cat sat", 1),
        ("one_two", "one two", 1),
        ("今天天气很好", "今天天气好", 2 * 5 / 11),
        ("私は寿司", "寿司は", 2 * 2 / 7),
        ("uses GPT4模型 now", "uses gpt4 模型", 2 * 4 / 9),
        ("größe", "grosse", 0),
        ("สวัสดีครับ", "สวัสดีค่ะ", 2 * 4 / (7 + 6)),  # a letter with its marks is one
        ("नमस्ते दुनिया", "नमस्ते जग", 1 / 2),  # marks do not split a word
        ("ສະບາຍດີ", "ສະບາຍ", 2 * 5 / 11),
        ("\U00020000\U00020001", "\U00020000", 2 / 3),  # Han beyond the first plane
        ("", "", 1),
        ("", "a", 0),
        ("a", "", 0),
        ("?!", "...", 1),
    ],
)
def test_rouge_l_by_hand(answer, expected, value):
    assert rouge_l(answer, expected) == pytest.approx(value)


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [
        (["今天天气很好，我们去公园。", "他在学校学习中文。"], "zh"),
        (["今日は天気がいいです。", "東京に行きました。"], "ja-mecab|char"),
        (["오늘은 날씨가 좋습니다.", "서울에 갑니다."], "ko-mecab|char"),
        (["วันนี้อากาศดี", "ไปโรงเรียน"], "char"),
        (["ມື້ນີ້ອາກາດດີ"], "char"),
        (["yes", "no"], "13a"),
        (["да", "нет"], "13a"),
        (["the word 好 in a long sentence of English words"], "13a"),
    ],
)
def test_bleu_follows_the_script_and_gives_identical_texts_100(texts, tokenizer):
    found = measure("bleu", texts, texts)
    assert found.value == pytest.approx(100)
    assert any(f"|tok:{name}|" in (found.signature or "") for name in tokenizer.split("|"))
    assert "eff:yes" in (found.signature or "")
    first = applicable_metrics(texts)[0]
    assert first == ("exact_match" if tokenizer in ("13a", "ko-mecab|char") else "chrf")
    assert measure("chrf", texts, texts).value == pytest.approx(100)


def test_bleu_of_answers_of_other_words_is_low():
    """The orders that are left out for short answers do not make wrong answers right."""
    assert measure("bleu", ["no", "maybe"], ["yes", "perhaps"]).value == 0
    assert measure("bleu", ["今天很冷"], ["明日太热"]).value < 1


def test_rouge_l_finds_the_longest_common_subsequence_of_long_texts():
    """Against the table that textbooks give, with rows of more than 64 words."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = (
            [f"w{number}" for number in rng.integers(0, 12, size)] for size in rng.integers(1, 150, 2)
        )
        table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                longer = max(table[i, j + 1], table[i + 1, j])
                table[i + 1, j + 1] = table[i, j] + 1 if one == other else longer
        expected = 2 * table[-1, -1] / (len(first) + len(second))
        assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "library"), [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)])
def test_corpus_scores_are_those_of_sacrebleu(name, library):
    found = measure(name, SAID, WANTED)
    assert found.value == pytest.approx(library().corpus_score(SAID, [WANTED]).score, abs=1e-9)
    assert len(found.statistics) == len(SAID)
    part = Measure(name, found.statistics[:2], found.score)
    assert part.value == pytest.approx(library().corpus_score(SAID[:2], [WANTED[:2]]).score, abs=1e-9)


def test_json_is_asked_for_only_where_every_answer_is_json():
    assert "json_valid" in applicable_metrics(['{"a": 1}', "[]"])
    assert "json_valid" not in applicable_metrics(['{"a": 1}', "words"])
    assert applicable_metrics(["words"]) == ["exact_match", "rouge_l", "chrf", "bleu"]


def test_a_function_of_the_users_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import dataclasses\n\n@dataclasses.dataclass\nclass Weight:\n    value: float = 0.5\n\n"
        "def half(answer, expected):\n    return Weight().value * (answer == expected)\n"
    )
    assert mean_of("half", load_function(f"{file}:half"), ["a", "b"], ["a", "c"]).value == 0.25


def test_the_loss_is_weighted_by_tokens_not_by_rows():
    assert ratio("loss", [(10.0, 1.0), (2.0, 5.0)]).value == pytest.approx(2.0)


def test_an_interval_is_seeded_and_holds_its_value():
    scores = measure("exact_match", ["a"] * 30 + ["b"] * 20, ["a"] * 50)
    first = interval(scores, 0.95, 500, seed=1)
    assert first == interval(scores, 0.95, 500, seed=1)
    assert first != interval(scores, 0.95, 500, seed=2)
    assert first.low < first.value < first.high
    narrow = interval(scores, 0.5, 500, seed=1)
    assert first.low < narrow.low <= narrow.high < first.high


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = interval(ratio("mean", [(value, 1.0) for value in values]), 0.95, 4000, seed=0)
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.08 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.08 * error)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 samples of 60 rows that are right with a chance of 0.7, at 90 %: 3 standard errors allowed."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        rows = [(float(right), 1.0) for right in rng.random(60) < 0.7]
        found = interval(ratio("share", rows), 0.9, 200, seed=0)
        covered += found.low <= 0.7 <= found.high
    assert 0.9 - 0.064 <= covered / 200 <= 0.9 + 0.064


def test_equal_models_differ_by_exactly_nothing():
    one, same = (measure("bleu", SAID, WANTED) for _ in range(2))
    gap = difference(one, same, 0.95, 200, seed=0)
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)
    assert not gap.excludes_zero


def test_a_small_gap_on_every_row_is_found_only_by_pairing():
    """Rows vary by far more than the two models do."""
    rng = np.random.default_rng(0)
    losses = rng.normal(5, 2, 100)
    base = ratio("loss", [(value, 1.0) for value in losses])
    better = ratio("loss", [(value - 0.05, 1.0) for value in losses])
    gap = difference(better, base, 0.95, 300, seed=0)
    assert gap.excludes_zero
    assert gap.value == pytest.approx(-0.05)
    assert gap.low == pytest.approx(-0.05)
    alone = interval(better, 0.95, 300, seed=0)
    assert alone.low < base.value < alone.high


def test_noise_is_called_noise():
    """Two models that are right on half of the rows each, at random: at 95 %, few pairs seem to differ."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        one, other = (ratio("share", [(float(r), 1.0) for r in rng.random(60) < 0.5]) for _ in range(2))
        found += difference(one, other, 0.95, 200, seed=0).excludes_zero
    assert found <= 12


@pytest.fixture(scope="module")
def tiny():
    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    return load_model(base, None, torch.float32, 0), base.tokenizer.pad_token_id


def rows_of(lengths: list[int]) -> list[Encoded]:
    """Rows of random tokens, of which the second half is labelled, but for one token in its middle."""
    rng = np.random.default_rng(0)
    rows = []
    for length in lengths:
        ids = rng.integers(3, 200, length).tolist()
        labels = [IGNORE] * (length // 2) + ids[length // 2 :]
        labels[length * 3 // 4] = IGNORE
        rows.append(Encoded(0, ids, labels))
    return rows


def test_losses_are_those_of_transformers(tiny):
    model, pad = tiny
    rows = rows_of([9, 40, 17, 5, 28])
    found = row_losses(model, rows, 2, pad)
    for row, (loss, tokens) in zip(rows, found, strict=True):
        with torch.inference_mode():
            ids, labels = (torch.tensor([part]).to(model.device) for part in (row.input_ids, row.labels))
            own = model(input_ids=ids, labels=labels).loss
        assert tokens == row.trained_tokens
        assert loss / tokens == pytest.approx(own.item(), abs=1e-5)


def test_losses_do_not_depend_on_the_batch_nor_on_the_order(tiny):
    model, pad = tiny
    rows = rows_of([9, 40, 17, 5, 28])
    alone = row_losses(model, rows, 1, pad)
    np.testing.assert_allclose(row_losses(model, rows, 5, pad), alone, rtol=1e-5)
    np.testing.assert_allclose(row_losses(model, rows[::-1], 2, pad)[::-1], alone, rtol=1e-5)


def test_a_model_in_training_stays_in_training(tiny):
    model, pad = tiny
    model.train()
    done: list[int] = []
    losses = row_losses(model, rows_of([9, 12, 30]), 2, pad, on_batch=done.append)
    assert model.training
    assert done == [2, 1]
    assert all(math.isfinite(loss) for loss, _ in losses)
    model.eval()
