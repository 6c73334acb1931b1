"""Answers of reasoning models: compared without their reasoning, which is kept in the samples and counted."""

from types import SimpleNamespace
from typing import Any

import pytest

from helpers.reasoning import (
    _KEPT,
    ANALYSIS,
    CHANNELS,
    FINAL,
    MARKS,
    OPENS,
    PLAIN,
    QWEN,
    RESPONSE,
    _template,
    renderer,
)
from helpers.tiny_model import tiny_base
from runner.config.settings import TemplateSettings
from runner.data.formats import Example
from runner.data.template import Renderer
from runner.evaluation.answers import AnswerParser, AnswerReader, answerable, reasoning_notes
from runner.evaluation.generate import generate
from runner.models.model import byte_tokenizer

RESPONDS = "<|START_RESPONSE|>4<|END_RESPONSE|>"


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
