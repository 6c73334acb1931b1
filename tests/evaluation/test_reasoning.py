"""Answers of reasoning models: compared without their reasoning, which is kept in the samples and counted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from helpers.command import TINY
from helpers.packs import run_pack
from helpers.tiny_model import tiny_base
from runner.config.settings import ChatSettings, TemplateSettings
from runner.data.formats import Example
from runner.data.template import Renderer
from runner.evaluation.answers import AnswerParser, AnswerReader, answerable, reasoning_notes
from runner.evaluation.chat import Conversation
from runner.evaluation.generate import generate
from runner.models.model import byte_tokenizer

_TURNS = """{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}ANSWER{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
PROMPT{% endif %}"""
_KEPT = "{% if loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}"
_OPENED = (
    "{% if loop.last %}<think>\n{{ m.reasoning_content or '' }}</think>\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}"
)


def _template(answer: str, prompt: str = "") -> str:
    return _TURNS.replace("ANSWER", answer).replace("PROMPT", prompt)


QWEN = _template(_KEPT)  # an empty block before every answer without reasoning
OPENS = _template(_OPENED, "<think>\n")  # the generation prompt begins the block, as for DeepSeek-R1
PLAIN = _template("{{ m.content }}")  # reads no reasoning
MARKS = _template("{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}{{ m.content }}")
RESPONSE = _template(
    "{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}"
    "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
)
CHANNELS = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if m.thinking and loop.last -%}
<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|im_end|>
{%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endif -%}
{%- endfor -%}{% if add_generation_prompt %}<|start|>assistant{% endif %}"""
SPECIALS = {
    MARKS: ["[THINK]", "[/THINK]"],
    RESPONSE: ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
    CHANNELS: ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"],
}
RESPONDS = "<|START_RESPONSE|>4<|END_RESPONSE|>"
ANALYSIS = "<|channel|>analysis<|message|>2 + 2.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>4"


def renderer(template: str) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if template in SPECIALS:
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[template]})
    return Renderer(tokenizer, TemplateSettings())


def example(answer: str = "4", **keys) -> Example:
    return Example(1, ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer, **keys}))


def written(found: Renderer, row: Example) -> str:
    """What a model that has learnt a row writes to it, decoded as a generated text is."""
    parser = AnswerParser(found)
    ids = found.tokenizer(parser.rendered(row)[0], add_special_tokens=False)["input_ids"]
    return parser.decode(ids, [found.tokenizer.eos_token_id])


@pytest.mark.parametrize(
    ("template", "text", "answer", "reasoning"),
    [
        (QWEN, "<think>\n\n</think>\n\n4", "4", "\n\n"),
        (QWEN, "<think>\n2 + 2.\n</think>\n\n4", "4", "\n2 + 2.\n"),
        (QWEN, "4", "4", None),
        (QWEN, " 4\n", " 4\n", None),
        (QWEN, "2 + 2.\n</think>\n\n4", "4", "2 + 2.\n"),
        (QWEN, "The tags <think> and </think>.", "The tags <think> and </think>.", None),
        (OPENS, "2 + 2.\n</think>\n4", "4", "2 + 2.\n"),
        (OPENS, "<think>\n2 + 2.\n</think>\n4", "4", "\n2 + 2.\n"),
        (PLAIN, "<think>2 + 2.</think>4", "4", "2 + 2."),
        (PLAIN, "<thinking>2 + 2.</thinking>4", "<thinking>2 + 2.</thinking>4", None),
        (MARKS, "[THINK]2 + 2.[/THINK]4", "4", "2 + 2."),
        (
            RESPONSE,
            "<|START_THINKING|>2 + 2.<|END_THINKING|><|START_RESPONSE|>4<|END_RESPONSE|>",
            "4",
            "2 + 2.",
        ),
        (RESPONSE, RESPONDS, "4", None),
        (CHANNELS, ANALYSIS + FINAL, "4", "2 + 2."),
        (CHANNELS, ANALYSIS + ANALYSIS + FINAL, "4", "2 + 2.2 + 2."),
        (CHANNELS, FINAL, "4", None),
        (CHANNELS, f"{FINAL}<|end|>", "4", None),
    ],
)
def test_the_answer_is_what_stands_after_the_reasoning(template, text, answer, reasoning):
    chosen = renderer(template)
    reader = AnswerReader(chosen, [example()])
    ids = chosen.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = reader.read([reader.parser.decode(ids)])[0]
    assert (found.answer, found.reasoning, found.closed) == (answer, reasoning, True)


@pytest.mark.parametrize("template", [QWEN, OPENS, PLAIN, MARKS, RESPONSE, CHANNELS])
@pytest.mark.parametrize(
    "row",
    [
        example(),
        example(reasoning_content="2 + 2."),
        example("<think>\n2 + 2.\n</think>\n\n4"),
        example("  4"),
        example('{"a": "<b>"}'),
    ],
)
def test_a_model_that_writes_the_row_is_right(template, row):
    chosen = renderer(template)
    reader = AnswerReader(chosen, [row])
    found = reader.read([written(chosen, row)])[0]
    assert found.closed
    assert found.answer.strip() == reader.expected[0].strip() in ("4", '{"a": "<b>"}')


def test_a_call_of_a_tool_is_expected_as_the_template_writes_it():
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Paris"}}}
    calls = "{% if m.tool_calls %}<call>{{ m.tool_calls[0].function | tojson }}</call>{% endif %}"
    chosen = renderer(_template(_KEPT + calls))
    row = example("", tool_calls=[call])
    reader = AnswerReader(chosen, [row])
    assert reader.expected == ['<call>{"name": "look_up", "arguments": {"city": "Paris"}}</call>']
    assert reader.read([written(chosen, row)])[0].answer == reader.expected[0]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (QWEN, "<think>\n2 + "),
        (OPENS, "2 + "),
        (MARKS, "[THINK]2 + "),
        (CHANNELS, "<|channel|>analysis<|message|>2 + "),
        (CHANNELS, ANALYSIS + "<|channel|>analysis<|message|>2 + "),
    ],
)
def test_a_text_that_ends_in_its_reasoning_has_no_answer_and_is_counted(template, text):
    found = AnswerReader(renderer(template), [example()]).read([text])
    assert (found[0].answer, found[0].closed, found[0].text) == ("", False, text)
    notes = reasoning_notes({"before": found, "after": found * 2}, "generation.max_new_tokens")
    assert notes == [
        "scored without the reasoning block: 1 of 1 answers before, 2 of 2 answers after",
        "1 of 1 answers before, 2 of 2 answers after ended inside their reasoning and count as empty: "
        "raise generation.max_new_tokens",
    ]


def test_a_block_that_the_rows_do_not_close_is_no_block():
    """Rows that put the reasoning's end in no place are learnt as they are: their words are the answer."""
    chosen = renderer(_template("{% if loop.last %}<think>\n{% endif %}{{ m.content }}", "<think>\n"))
    reader = AnswerReader(chosen, [example()])
    texts = ["4", "2 + 2.</think>4"]
    assert [reader.read([text])[0].answer for text in texts] == ["4", "4"]


def test_the_end_token_of_another_family_ends_no_reasoning():
    """Phi ends its turns by the token that ends gpt-oss's reasoning."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = PLAIN.replace("<|im_end|>", "<|end|>")
    parser = AnswerParser(Renderer(tokenizer, TemplateSettings()))
    ids = tokenizer("4<|end|>", add_special_tokens=False)["input_ids"]
    assert parser.decode(ids) == "4"
    assert parser.parse("<|end|>4").reasoning is None


def test_rows_that_the_template_rejects_or_does_not_write_are_not_asked():
    raises = "{% if m.content == 'no' %}{{ raise_exception('no') }}{% endif %}"
    silent = "{% if m.content != 'nothing' %}{{ m.content }}{% endif %}"
    rows = [example("no"), example("nothing"), example("4")]
    split: Any = SimpleNamespace(examples=rows)
    assert list(answerable(split, renderer(_template(raises + silent)))) == [rows[2]]


def test_the_default_length_has_room_for_the_reasoning_of_the_rows(monkeypatch):
    model, lengths = tiny_base(), []

    def spy(input_ids, max_new_tokens, **_):
        lengths.append(max_new_tokens)
        return input_ids

    monkeypatch.setattr(model, "generate", spy)
    for row in (example(), example(reasoning_content="x" * 50)):
        generate(model, renderer(QWEN), [row], 1, None)
    empty, reasoned = lengths
    assert empty == len("<think>\n\n</think>\n\n4") + 8
    assert reasoned == empty + 50


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
def rows(tmp_path, monkeypatch):
    """Write the files of ``DATA``; one of the held-out answers has its reasoning among its words."""
    monkeypatch.chdir(tmp_path)
    held_out = [
        {"prompt": "Say one.", "completion": "one"},
        {"prompt": "Say two.", "completion": "<think>\nLess than three.\n</think>\n\ntwo"},
        {"prompt": "Say three.", "completion": "three"},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    Path("train.jsonl").write_text(json.dumps({"prompt": "Say ten.", "completion": "ten"}) + "\n")


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
