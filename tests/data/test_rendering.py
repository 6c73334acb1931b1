"""What becomes of rows under templates with the traits of real ones: small ones of our own, a trait each."""

from typing import Any

import pytest

from runner.config.settings import TemplateSettings
from runner.data.formats import to_example
from runner.data.messages import BadRow
from runner.data.template import Renderer
from runner.models.model import byte_tokenizer

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}


def user(text: Any = "Why?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any = "So.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def rendered(template: str, *messages: Any, tools: Any = ()) -> tuple[list[list[str]], list[str]]:
    """The labelled parts of each row, and the warnings."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert tokenizer.eos_token == "<|im_end|>"
    renderer = Renderer(tokenizer, TemplateSettings())
    row = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
    example = to_example(row, 1, "messages")
    rows = renderer.render(example)
    spans = [[row.text[start:end] for start, end in row.spans] for row in rows]
    return spans, renderer.warnings(example, rows)


def prompt_opens(opening: str) -> str:
    return CHATML.replace("assistant\n{% endif", f"assistant\n{opening}{{% endif")


def reads_reasoning(before: str, after: str, empty: str = "") -> str:
    given = f"{{% if m.reasoning_content %}}{before}{{{{ m.reasoning_content }}}}{after}"
    block = "{% if m.role == 'assistant' %}" + given + "{% else %}" + empty + "{% endif %}{% endif %}"
    return CHATML.replace("{{ m.content }}", block + "{{ m.content }}")


WITH_CALLS = CHATML.replace(
    "{{ m.content }}",
    "{% if m.tool_calls %}{% for c in m.tool_calls %}[{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}]{% endfor %}{% else %}{{ m.content }}{% endif %}",
).replace("{% for m in messages %}", "{{ tools | tojson }}{% for m in messages %}", 1)


def test_the_stop_token_ends_the_answer_whatever_follows() -> None:
    template = CHATML + "{% if not add_generation_prompt %}<|im_start|>user\n{% endif %}"
    assert rendered(template, user(), answer()) == ([["So.<|im_end|>"]], [])


def test_an_empty_question_turns_no_check_off() -> None:
    template = prompt_opens("I say: ")
    for text in ("Why?", ""):
        with pytest.raises(BadRow, match="over its own prompt"):
            rendered(template, user(text), answer())


@pytest.mark.parametrize(
    ("row", "span"),
    [
        (answer(), "\n</think>\n\nSo.<|im_end|>"),
        (answer(reasoning_content="Hm."), "Hm.\n</think>\n\nSo.<|im_end|>"),
        (answer("<think>\nHm.\n</think>\n\nSo."), "Hm.\n</think>\n\nSo.<|im_end|>"),
    ],
)
def test_reasoning_that_the_prompt_opens_is_closed(row: Any, span: str) -> None:
    reads = reads_reasoning("<think>\n", "\n</think>\n\n")
    template = reads.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert rendered(template, user(), row) == ([[span]], [])


def test_an_opening_shares_no_letter_with_the_closing_that_stands_in_its_place() -> None:
    reads = reads_reasoning("<think>", "</think>", "</think>")
    template = reads.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    assert rendered(template, user(), answer())[0] == [["</think>So.<|im_end|>"]]
    assert rendered(template, user(), answer(reasoning_content="Hm."))[0] == [["Hm.</think>So.<|im_end|>"]]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert Renderer(tokenizer, TemplateSettings()).template.own_delimiters == ("<think>", "</think>")


def test_the_words_keep_one_beginning_behind_a_closing() -> None:
    template = (
        reads_reasoning("<think>", "</think>")
        .replace(
            "{{ m.content }}<|im_end|>",
            "{% if m.role == 'assistant' %}<turn>{% endif %}{{ m.content }}<|im_end|>",
        )
        .replace("assistant\n{% endif", "assistant\n<think>{% endif")
    )
    assert rendered(template, user(), answer())[0] == [["</think><turn>So.<|im_end|>"]]


# The prompt opens a block of the template's own, and the words keep a block of another family, as Cohere's.
OTHER_BLOCK = (
    reads_reasoning("<|START_THINKING|>", "<|END_THINKING|>")
    .replace(
        "{{ m.content }}<|im_end|>",
        "<turn>{{ m.content }}{% if m.tool_calls %}[look Rome]{% endif %}<|im_end|>",
    )
    .replace("assistant\n{% endif", "assistant\n<|START_THINKING|>{% endif")
)
MOVED = "reasoning moved from its row's delimiters into the template's own"


@pytest.mark.parametrize(
    ("row", "span", "warnings"),
    [
        (answer("<think>\nHm.\n</think>\n\nSo."), "Hm.<|END_THINKING|><turn>So.<|im_end|>", [MOVED]),
        (answer("<think>\n\n</think>\n\nSo."), "<|END_THINKING|><turn>So.<|im_end|>", []),
        (answer(reasoning_content="Hm."), "Hm.<|END_THINKING|><turn>So.<|im_end|>", []),
        (
            answer("<think>\nHm.\n</think>", tool_calls=[CALL]),
            "Hm.<|END_THINKING|><turn>[look Rome]<|im_end|>",
            ["arguments of tool calls left out by the template", MOVED],
        ),
    ],
)
def test_reasoning_in_the_delimiters_of_another_family_is_moved_and_said(row, span, warnings) -> None:
    spans, said = rendered(OTHER_BLOCK, user(), row)
    assert (spans, said) == ([[span]], warnings)


def test_reasoning_that_the_template_leaves_out_is_said() -> None:
    spans, warnings = rendered(CHATML, user(), answer(reasoning_content="Hm."))
    assert (spans, warnings) == ([["So.<|im_end|>"]], ["reasoning left out by the template"])


def test_calls_and_the_words_beside_them() -> None:
    call = '[look {"city": "Rome"}]<|im_end|>'
    for arguments in ({"city": "Rome"}, '{"city": "Rome"}'):
        one = {**CALL, "function": {"name": "look", "arguments": arguments}}
        assert rendered(WITH_CALLS, user(), answer("", tool_calls=[one]), tools=TOOLS)[0] == [[call]]
    spans, warnings = rendered(WITH_CALLS, user(), answer("Wait.", tool_calls=[CALL]), tools=TOOLS)
    assert (spans, warnings) == ([[call]], ["words of an answer left out by the template"])


def test_an_answer_of_which_nothing_is_written_is_not_trained() -> None:
    calling = [user(), answer("", tool_calls=[CALL])]
    assert rendered(CHATML, *calling)[0] == []
    spans, warnings = rendered(CHATML, *calling, {"role": "tool", "content": "sun"}, answer())
    assert spans == [["So.<|im_end|>"]]
    assert warnings == ["an answer of which the template writes nothing: not trained on"]
    late, warnings = rendered(CHATML, user("Hi"), answer(), *calling)
    assert (late, warnings) == (
        [["So.<|im_end|>"]],
        ["an answer of which the template writes nothing: not trained on"],
    )
    named = [user("Can you look at Rome's city?"), *calling[1:]]
    assert rendered(CHATML, *named)[0] == []


def test_arguments_as_text_where_the_template_wants_text() -> None:
    template = WITH_CALLS.replace("c.function.arguments | tojson", "c.function.arguments + ''")
    assert rendered(template, user(), answer("", tool_calls=[CALL]), tools=TOOLS)[0] == [
        ['[look {"city": "Rome"}]<|im_end|>']
    ]


def test_parts_where_the_template_wants_parts() -> None:
    template = CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
    for text in ("So.", [{"type": "text", "text": "So."}]):
        assert rendered(template, user(text), answer(text)) == ([["So.<|im_end|>"]], [])


def test_the_hint_names_a_switch_only_for_reasoning() -> None:
    switch = "{% if enable_thinking is defined and enable_thinking %}{% endif %}"
    with pytest.raises(BadRow) as caught:
        rendered(switch + prompt_opens("I say: "), user(), answer())
    assert "enable_thinking" not in str(caught.value)
