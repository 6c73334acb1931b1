"""Runs, evaluations and chats score the answer that stands after the reasoning."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from helpers.command import TINY
from helpers.packs import run_pack
from helpers.reasoning import (
    ANALYSIS,
    CHANNELS,
    FINAL,
    OPENS,
    PLAIN,
    QWEN,
    renderer,
)
from runner.config.settings import ChatSettings
from runner.evaluation.chat import Conversation


@pytest.fixture
def said(monkeypatch):
    """Let a model write what is given here, in turn."""
    from runner.evaluation import generate as module

    def say(*texts: list[str]) -> None:
        turns = iter(texts)
        monkeypatch.setattr(module, "generate", lambda *args, **kwargs: next(turns))

    return say


DATA = ("data=file", "data.path=train.jsonl", "data.eval_path=rows.jsonl", "data.eval_max_rows=null")


@pytest.fixture
def qwen(tmp_path) -> tuple[str, ...]:
    """The words that choose ``QWEN``."""
    folder = tmp_path / "own" / "template"
    folder.mkdir(parents=True)
    (folder / "reasons.yaml").write_text(yaml.safe_dump({"chat_template": QWEN}))
    return ("--config-dir", str(folder.parent), "template=reasons")


RIGHT = [f"<think>\n\n</think>\n\n{word}" for word in ("one", "two", "three")]
CUT = ["<think>\nSo", "<think>\n\n</think>\n\nfour", "three"]


def test_a_run_scores_the_answers_and_keeps_what_was_written(cli, said, rows, qwen, capsys):
    said(CUT, RIGHT)
    run = cli(*TINY, *qwen, *DATA, "data.metric=exact_match", "trainer.max_steps=1")
    assert run.code == 0
    metrics = run.record["metrics"]
    assert (metrics["exact_match_before"], metrics["exact_match_after"]) == (pytest.approx(1 / 3), 1)
    samples = run.lines("samples.jsonl")
    assert [line["after"] for line in samples] == RIGHT
    assert [line["after_answer"] for line in samples] == ["one", "two", "three"]
    assert [line.get("before_answer") for line in samples] == ["", "four", None]
    assert [line.get("expected_answer") for line in samples] == [None, "two", None]
    assert [line["after_match"] for line in samples] == [True] * 3
    notes = [
        "scored without the reasoning block: 2 of 3 answers before, 3 of 3 answers after",
        "1 of 3 answers before ended inside their reasoning and count as empty: "
        "raise generation.max_new_tokens",
    ]
    assert [note for note in run.record["notes"] if "reasoning" in note] == notes
    printed = capsys.readouterr().out
    assert all(f"warning {note}" in printed for note in notes)


def test_evaluate_gives_the_answer_alone_to_all_metrics_and_the_users_function(cli, said, rows, qwen):
    said(RIGHT)
    Path("own.py").write_text("def short(answer, expected):\n    return len(answer) <= len(expected) <= 5\n")
    chosen = ("evaluate.function=own.py:short", "evaluate.metrics=[exact_match,rouge_l,chrf,bleu]")
    run = cli("recipe=evaluate", *TINY[:2], *qwen, *DATA, *chosen)
    assert run.code == 0
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    scores = {name: score["value"] for name, score in evaluation["models"]["model"].items()}
    assert {name: scores[name] for name in ("exact_match", "rouge_l", "short")} == {
        "exact_match": 1,
        "rouge_l": 1,
        "short": 1,
    }
    assert [scores[name] for name in ("chrf", "bleu")] == pytest.approx([100, 100])
    note = "scored without the reasoning block: 3 of 3 answers of model"
    assert evaluation["notes"] == [note]
    assert note in run.record["notes"]
    sample = run.lines("samples.jsonl")[0]
    assert (sample["after"], sample["after_answer"], sample["after_match"]) == (RIGHT[0], "one", True)


def test_each_cell_of_a_pack_is_scored_by_its_own_answers(said, rows, tmp_path):
    said(CUT, RIGHT + CUT)
    base = (*TINY, *DATA, "data.metric=exact_match", "trainer.max_steps=1")
    runs = run_pack(tmp_path / "cells", base, [("lora.r=4",), ("lora.r=8",)])
    scores = [run.record["metrics"]["exact_match_after"] for run in runs]
    assert scores == [1, pytest.approx(1 / 3)]
    assert [run.lines("samples.jsonl")[0]["after_answer"] for run in runs] == ["one", ""]
    counted = [[note for note in run.record["notes"] if "3 of 3 answers after" in note] for run in runs]
    assert [len(notes) for notes in counted] == [1, 0]


def test_answers_to_a_file_of_prompts_stand_apart_from_their_reasoning(cli, said, rows, qwen):
    said(["<think>\n2 + 2.\n</think>\n\n4", "<think>\nSo", "5"])
    Path("asks.txt").write_text("one\ntwo\nthree\n")
    run = cli("recipe=chat", "model=tiny", *qwen, "prompts=asks.txt")
    assert run.code == 0
    lines = [(line["answer"], line.get("reasoning_content")) for line in run.lines("answers.jsonl")]
    assert lines == [("4", "2 + 2."), ("", "So"), ("5", None)]
    assert run.record["notes"][-1] == (
        "1 of 3 answers ended inside their reasoning and count as empty: raise chat.max_new_tokens"
    )


class Writer:
    """A model that writes given token ids, whatever it is asked."""

    def __init__(self, *answers: list[int]) -> None:
        self.device, self.config = torch.device("cpu"), SimpleNamespace()
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self._answers = iter(answers)

    def generate(self, input_ids, streamer, **_):
        streamer.put(input_ids)
        for token in next(self._answers):
            streamer.put(torch.tensor([token]))
        streamer.end()


@pytest.mark.parametrize(
    ("template", "text", "kept"),
    [
        (QWEN, "<think>\n2 + 2.\n</think>\n\n4", {"content": "4", "reasoning_content": "2 + 2."}),
        (QWEN, "<think>\n\n</think>\n\n4", {"content": "4"}),
        (QWEN, "4", {"content": "4"}),
        (OPENS, "2 + 2.</think>\n4", {"content": "4", "reasoning_content": "2 + 2."}),
        (OPENS, "2 + 2.", {"content": "", "reasoning_content": "2 + 2."}),
        (PLAIN, "<think>2 + 2.</think>4", {"content": "<think>2 + 2.</think>4"}),
        (CHANNELS, ANALYSIS + FINAL, {"content": "4", "reasoning_content": "2 + 2."}),
    ],
)
def test_a_chat_shows_the_reasoning_and_keeps_it_as_the_template_expects(template, text, kept):
    chosen = renderer(template)
    ids = chosen.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    chat = Conversation(Writer(ids), chosen, ChatSettings(), [], None)
    assert "".join(chat.ask("2+2?")) == text
    assert chat.turns[-1] == {"role": "assistant", **kept}
    chat.turns.append({"role": "user", "content": "Why?"})
    assert ("2 + 2." in chosen.tokenizer.decode(chat.prompt_ids())) is (template == PLAIN)
