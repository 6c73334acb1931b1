"""Turns of every shape are trained as they will be served: thinking, ends, repeated answers, tools."""

import pytest

from helpers.templates import (
    CHATML,
    DEFAULT_SYSTEM,
    INST,
    LATE_SYSTEM,
    chat,
    encoded,
    runs,
    texts,
    tokenizer,
    trained,
)
from runner.config.settings import TemplateSettings
from runner.data.formats import to_example
from runner.data.messages import BadRow
from runner.data.template import IGNORE, Renderer

# An end of the whole conversation after the end of the last turn, as Phi's template has it.
TWO_ENDS = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
# Earlier turns lose their reasoning, the last one gets an empty one, as in Qwen3's template.
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% if loop.last %}<think>

</think>

{% endif %}{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}
{%- endif %}<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

NO_PROMPT = CHATML.partition("\n{%- if add_generation_prompt %}")[0]
NO_END = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def test_thinking_template_is_unrolled_into_what_is_served() -> None:
    example = chat("Hi", "<think>\nhm\n</think>\n\nHello", "And?", "Fine")
    made = tokenizer(THINKING)
    empty = "<think>\n\n</think>\n\n"
    assert trained(made, example) == [[f"{empty}Hello<|im_end|>"], [f"{empty}Fine<|im_end|>"]]
    off = {"kwargs": {"enable_thinking": False}}
    assert trained(made, example, **off) == [["Hello<|im_end|>"], ["Fine<|im_end|>"]]
    last = texts(made, example, **off)[1]
    assert last.startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>")
    assert last.endswith(f"{empty}Fine<|im_end|>")
    renderer = Renderer(made, TemplateSettings(**off))
    assert last == renderer.prompt(example) + "Fine<|im_end|>"


def test_an_end_of_the_conversation_after_the_end_of_the_turn() -> None:
    made = tokenizer(TWO_ENDS, "</s>")
    assert trained(made, chat("Hi", "Hello", "And?", "Fine")) == [["Hello<|im_end|>", "Fine<|im_end|>\n</s>"]]


def test_template_without_generation_prompt() -> None:
    made, example = tokenizer(NO_PROMPT), chat("Hi", "Hello", "And?", "Fine")
    assert trained(made, example) == [["Hello<|im_end|>", "Fine<|im_end|>"]]
    assert (
        Renderer(made, TemplateSettings()).prompt(example).endswith("And?<|im_end|>\n<|im_start|>assistant\n")
    )
    inst = Renderer(tokenizer(INST, "</s>"), TemplateSettings())
    assert inst.prompt(example) == "<s>[INST] Hi [/INST] Hello</s>[INST] And? [/INST]"


def test_template_that_never_ends_a_turn() -> None:
    made, example = tokenizer(NO_END, "</s>"), chat("Hi", "Hello", "And?", "Fine")
    assert trained(made, example) == [[" Hello</s>"], [" Fine</s>"]]
    assert texts(made, example)[1] == "User: Hi\nAssistant: Hello\nUser: And?\nAssistant: Fine</s>"


def test_prompt_and_answer_share_no_token() -> None:
    template = NO_END.replace(": {{ m.content }}\n", ":\n{{ m.content }}</s>").replace(
        "Assistant:", "Assistant:\n"
    )
    for kind in ("greedy", "slow greedy"):  # its tokens reach from one line into the next
        made = tokenizer(template, "</s>", kind)
        [row] = encoded(made, chat("Hi", "Fine"))
        assert (runs(made, row), row.apart) == (["Fine</s>"], 1)
        before = row.input_ids[: row.labels.count(IGNORE)]
        assert made.decode(before).endswith("Assistant:\n")
        assert before == made(made.decode(before), add_special_tokens=False)["input_ids"]
        both = encoded(made, chat("Hi", "Fine", "And?", "Fine"))
        assert [run for row in both for run in runs(made, row)] == ["Fine</s>", "Fine</s>"]


def test_empty_repeated_and_first_answers() -> None:
    made = tokenizer()
    assert trained(made, chat("Hi", "", "And?", "Fine")) == [["Fine<|im_end|>"]]
    assert trained(made, chat("Hi", "One", "Two", roles="uaa")) == [["One<|im_end|>", "Two<|im_end|>"]]
    assert trained(made, chat("Welcome", "Hi", "Hello", roles="aua")) == [
        ["Welcome<|im_end|>", "Hello<|im_end|>"]
    ]
    kind = tokenizer(DEFAULT_SYSTEM)
    assert trained(kind, chat("Welcome", roles="a")) == [["Welcome<|im_end|>"]]
    assert (
        Renderer(kind, TemplateSettings())
        .prompt(chat("Welcome", roles="a"))
        .endswith("<|im_start|>assistant\n")
    )
    with pytest.raises(BadRow, match="roles must alternate"):
        encoded(tokenizer(INST, "</s>"), chat("Hi", "One", "Two", roles="uaa"))


def test_answers_of_weight_zero_are_only_read() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Bad", "weight": 0},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Good"},
    ]
    example = to_example({"messages": turns}, 1, "messages")
    assert trained(tokenizer(), example) == [["Good<|im_end|>"]]
    assert "Bad" in texts(tokenizer(), example)[0]


MARKED = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Bad", "reasoning_content": "hm", "weight": 0},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Good"},
]


@pytest.mark.parametrize(
    ("template", "eos", "spans"),
    [
        (CHATML, "<|im_end|>", ["<|im_start|>user\nHi<|im_end|>", "\n<|im_start|>user\nAnd?"]),
        (THINKING, "<|im_end|>", ["<|im_start|>user\nHi<|im_end|>", "\n<|im_start|>user\nAnd?"]),
        (INST, "</s>", ["<s>[INST] Hi", "[INST] And? [/INST]"]),
        (NO_END, "<|im_end|>", ["User: Hi", "\nUser: And?"]),
    ],
    ids=["chatml", "thinking", "inst", "no end"],
)
def test_marked_answers_are_no_part_of_all(template: str, eos: str, spans: list[str]) -> None:
    example = to_example({"messages": MARKED}, 1, "messages")
    [[first, second]] = trained(tokenizer(template, eos), example, "all")
    assert first == spans[0]
    assert second.startswith(spans[1])
    assert "Good" in second


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": 0}, {"masked": True}])
def test_marked_messages_of_any_role_are_no_part_of_all(mark: dict) -> None:
    said = ("system", "Be."), ("user", "Hi"), ("assistant", "Yes")
    turns = [{"role": role, "content": words, **mark} for role, words in said] + MARKED[2:]
    [[everything]] = trained(tokenizer(), to_example({"messages": turns}, 1, "messages"), "all")
    assert everything.startswith("\n<|im_start|>user\nAnd?<|im_end|>")


def test_messages_that_are_marked_in_a_pair_are_no_part_of_all() -> None:
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    for marked in ({}, {"weight": 0}):
        sides = {
            side: [{**prompt[0], **marks}, prompt[1], *MARKED[2:3], {**MARKED[3], "content": side}]
            for side, marks in (("chosen", marked), ("rejected", {}))
        }
        example = to_example(sides, 1, "preference", kind="preference")
        [[both]] = trained(tokenizer(), example, "all")
        assert both.startswith("\n<|im_start|>assistant\nYes" if marked else "<|im_start|>user\nHi")
        assert trained(tokenizer(), example) == [["chosen<|im_end|>"]]


TOOLS = """{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]
{%- endfor %}<|im_end|>{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_tools_their_calls_and_results() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"sum": 2}'},
        {"role": "assistant", "content": "Two."},
    ]
    schema = {"type": "function", "function": {"name": "add", "parameters": {}}}
    example = to_example({"messages": turns, "tools": [schema]}, 1, "messages")
    made = tokenizer(TOOLS)
    assert trained(made, example) == [['[add {"a": 1}]<|im_end|>', "Two.<|im_end|>"]]
    assert '"name": "add"' in texts(made, example)[0]
    renderer = Renderer(made, TemplateSettings())
    assert renderer.warnings(example, renderer.render(example)) == []
    deaf = Renderer(tokenizer(LATE_SYSTEM, "</s>"), TemplateSettings())
    assert deaf.warnings(example, deaf.render(example)) == [
        "an answer of which the template writes nothing: not trained on",
        "tool message left out by the template",
        "tools left out by the template",
    ]
