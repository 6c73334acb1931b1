"""Rows 14 to 19: answers that would be left without their labels or their end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.faulty_rows import ASKED, GOOD, TRAIN, answer, inspected, jsonl, refusal
from runner.config.settings import ModelSettings
from runner.models.model import find_base, load_model

END = "<|im_end|>"


def test_14_no_answer_at_all_is_refused(cli, capsys, made):
    made("a.csv", b"prompt,completion\na,\nb, \n")
    err = refusal(cli(*TRAIN, "data.path=a.csv"), capsys)
    assert "data (train): no row is left to train on: 2 read, 2 empty answer" in err
    assert "data.columns" in err


@pytest.mark.sampled(3)
@pytest.mark.parametrize("key", ["data.path", "data.eval_path"])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_15_prompts_that_are_all_too_long_are_refused(cli, capsys, made, key, packing):
    made("good.jsonl", jsonl(*GOOD))
    made("long.jsonl", jsonl(*({**row, "prompt": "x" * 600} for row in GOOD)))
    files = {"data.path": "good.jsonl", key: "long.jsonl"}
    words = (f"{name}={file}" for name, file in files.items())
    err = refusal(cli(*TRAIN, *words, f"trainer.packing={packing}"), capsys)
    assert "no row is left to train on: 4 read, 4 all labels masked" in err
    assert "raise trainer.max_length" in err


@pytest.mark.sampled(3)
@pytest.mark.parametrize("packing", ["", "bfd", "wrapped"])
def test_16_long_rows_are_counted_and_no_batch_is_without_labels(cli, made, packing):
    """A third of the rows is too long, some in the prompt, some in the last answer, some in a later turn."""
    short = [{"messages": [{**ASKED, "content": "x" * 30}, answer(content=f"{n}")]} for n in range(8)]
    prompt = [{"messages": [{**ASKED, "content": "x" * 80}, answer()]}] * 2
    later = [{"messages": [ASKED, answer(), {**ASKED, "content": "x" * 80}, answer()]}] * 2
    made(
        "a.jsonl", jsonl(*(row for n in range(2) for row in (*short[4 * n : 4 * n + 4], prompt[n], later[n])))
    )
    made("b.jsonl", jsonl(*later, {"messages": [{**ASKED, "content": "y" * 30}, answer()]}))
    how = ("trainer.packing=true", f"trainer.packing_strategy={packing}") if packing else ()
    single = ("trainer.per_device_train_batch_size=1", "trainer.per_device_eval_batch_size=1")
    words = ("data.path=a.jsonl", "data.eval_path=b.jsonl", "trainer.max_length=64", "trainer.max_steps=8")
    run = cli(*TRAIN, *words, *single, *how)
    assert run.code == 0
    counts = run.record["data"]["train"]["counts"]
    assert counts == {"read": 12, "repeated": 2, "all labels masked": 2, "truncated": 2}
    notes = run.record["notes"]
    assert "train: 2 rows cut at max_length=64" in notes
    assert "train: 2 rows dropped: their prompt alone fills max_length=64" in notes
    # an untrained model guesses about one byte of 512: a batch without labels would say 0
    losses = [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line]
    assert len(losses) == 8
    assert all(5 < loss < 8 for loss in [*losses, run.record["metrics"]["eval_loss"]])


def tiny_folder(change: Callable[[Any], Any], **config: Any) -> tuple[str, ...]:
    """A folder with the tiny model, its tokenizer and config changed, and the words that choose it."""
    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    model: Any = load_model(base, None, torch.float32, seed=0)
    change(base.tokenizer)
    for name, value in config.items():
        setattr(model.config, name, value)
    eos = base.tokenizer.eos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = eos
    model.save_pretrained("base")
    base.tokenizer.save_pretrained("base")
    return "model.path=base", "model.weights=pretrained", "model.architecture=null"


@pytest.mark.slow
def test_17_marks_that_are_no_tokens_are_said_and_the_answer_still_ends(cli, made):
    def respell(tokenizer: Any) -> None:
        gemma = tokenizer.chat_template.replace("<|im_start|>", "<start_of_turn>")
        tokenizer.chat_template = gemma.replace(END, "<end_of_turn>")

    words = (*tiny_folder(respell), f"data.path={made('a.jsonl', jsonl(*GOOD))}")
    run = cli(*TRAIN, *words)
    assert run.code == 0
    [note] = run.record["notes"]
    assert "delimiters <start_of_turn>, <end_of_turn> are not special tokens of this tokenizer" in note
    assert "an answer ends with <|im_end|>" in note
    _, [row, *_] = inspected(cli, *words)
    assert row["trained_text"] == f"answer 0<end_of_turn>{END}"


def test_17_a_template_of_ones_own_with_unknown_control_tokens_is_refused(cli, capsys, made):
    made("a.jsonl", jsonl(*GOOD))
    own = "template.chat_template='{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}'"
    assert "the template uses <|turn|>, which this tokenizer has no token for" in refusal(
        cli(*TRAIN, "data.path=a.jsonl", own), capsys
    )


def test_17_an_end_at_which_generation_would_go_on_is_refused_with_the_key(cli, capsys, made):
    made("a.jsonl", jsonl(*GOOD))
    model = tiny_folder(lambda tokenizer: setattr(tokenizer, "eos_token", "<|endoftext|>"))
    err = refusal(cli(*TRAIN, *model, "data.path=a.jsonl"), capsys)
    assert (
        "the template ends an answer with '<|im_end|>', but generation stops at '<|endoftext|>' only" in err
    )
    assert "template.stop='<|im_end|>'" in err
    run = cli(*TRAIN, *model, "data.path=a.jsonl", "template.stop='<|im_end|>'")
    assert run.code == 0
    saved = json.loads((run.folder / "adapter/tokenizer_config.json").read_text())
    assert saved["eos_token"] == END


def test_18_a_length_beyond_the_positions_is_refused(cli, capsys, made):
    made("a.jsonl", jsonl(*GOOD, {"prompt": "x", "completion": "y" * 3000}))
    for words in (("recipe=sft",), ("recipe=evaluate",), ("recipe=inspect",)):
        err = refusal(cli(*TRAIN, "data.path=a.jsonl", "trainer.max_length=2049", *words), capsys)
        assert "trainer.max_length=2049 is beyond the 2048 positions of the model" in err
    # without a length of one's own, the positions are the length
    record, rows = inspected(cli, "data.path=a.jsonl", "trainer.max_length=null")
    assert record["notes"] == ["train: 1 rows cut at max_length=2048"]
    assert max(row["tokens"] for row in rows) == 2048


@pytest.mark.slow
def test_18_scaled_positions_are_accepted(cli, capsys, made):
    made("a.jsonl", jsonl(*GOOD))
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    model = tiny_folder(lambda tokenizer: None, max_position_embeddings=64, rope_parameters=rope)
    assert "the 256 positions" in refusal(cli(*TRAIN, *model, "data.path=a.jsonl"), capsys)
    assert cli(*TRAIN, *model, "data.path=a.jsonl", "trainer.max_length=256").code == 0


def test_19_the_end_is_trained_on_whatever_pads(cli, made):
    made("a.jsonl", jsonl(*GOOD, {"prompt": "a longer one", "completion": "with a longer answer"}))
    losses = []
    for name, pad in (("own", "<|endoftext|>"), ("end", END), ("none", None)):

        def choose(tokenizer: Any, pad: str | None = pad) -> None:
            tokenizer.pad_token = pad

        words = (*tiny_folder(choose, pad_token_id=None), "data.path=a.jsonl")
        losses.append(cli(*TRAIN, *words, folder=name).record["metrics"]["train_loss"])
        _, rows = inspected(cli, *words, folder=f"seen-{name}")
        assert [row["trained_text"] for row in rows][:2] == [f"answer 0{END}", f"answer 1{END}"]
    assert losses[1:] == pytest.approx(losses[:1] * 2, abs=1e-6)


def test_19_a_tokenizer_that_names_no_end_is_refused_with_the_key(cli, capsys, made):
    def forget(tokenizer: Any) -> None:
        tokenizer.eos_token = tokenizer.pad_token = None

    made("a.jsonl", jsonl(*GOOD))
    err = refusal(cli(*TRAIN, *tiny_folder(forget, pad_token_id=None), "data.path=a.jsonl"), capsys)
    assert "template.stop: the tokenizer names no end token" in err
