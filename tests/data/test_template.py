"""What is trained on is the assistant's words and the end of its turn, whatever the template does.

The templates are small ones in the manner of well-known families. Where a family can be written with
``{% generation %}`` markers, transformers' own mask is the oracle.
"""

import re
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from runner.config.settings import TemplateSettings
from runner.core.errors import ConfigError
from runner.data.chat_template_check import apply_template
from runner.data.formats import Example, to_example
from runner.data.messages import BadRow
from runner.data.template import IGNORE, Encoded, Renderer

SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|eot|>", "<turn>", "<end>"]
TEXTS = [
    "Hello there, how are you?\n\nFine: thanks\n",
    "你好，世界！再见。",
    "Assistant: yes\n\n",
    "🙂🙃 the end the end",
]

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
DEFAULT_SYSTEM = (
    """{% if messages[0].role != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}"""
    + CHATML
)
LLAMA3 = """{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|head|>

{% generation %}{{ m.content | trim }}<|eot|>{% endgeneration %}{% endfor %}
{%- if add_generation_prompt %}<|head|>assistant<|head|>

{% endif %}"""
INST = """{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}[INST] {{ m.content }} [/INST]
{%- else %}{% generation %} {{ m.content.strip() }}{{ eos_token }}{% endgeneration %}
{%- endif %}{% endfor %}"""
TURN = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}
{{- raise_exception('no system role') }}{% endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}
{% generation %}{{ m.content | trim }}<end>{% endgeneration %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}<turn>model
{% endif %}"""
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
# The system prompt stands in the last user turn, and only while that is last, as in some of Mistral's.
LATE_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and "
    "messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@cache
def _backend(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "metaspace"))
    if kind == "metaspace":
        words = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), words])
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
        )
        letters = [f"<0x{number:02X}>" for number in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=letters, show_progress=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "greedy")
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind == "trimmed")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for text in TEXTS for _ in range(3)], trainer)
    return tokenizer


class Slow:
    """A tokenizer that gives no offsets, as those written in Python."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        assert isinstance(text, str)
        assert not options.get("return_offsets_mapping")
        return self._inner(text, **options)


def tokenizer(
    template: str | None = CHATML, eos: str = "<|im_end|>", kind: str = "bytes", **options: Any
) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(kind.removeprefix("slow ")).to_str()),
        bos_token="<s>",
        eos_token=eos,
        pad_token=options.pop("pad", eos),
        chat_template=template,
        extra_special_tokens=SPECIAL,
        **options,
    )
    return Slow(made) if kind.startswith("slow ") else made


def chat(*contents: str, roles: str = "ua") -> Example:
    """Messages by turns; ``roles`` gives their first letters and repeats."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    letters = roles if len(roles) >= len(contents) else roles * len(contents)
    said = zip(letters, contents, strict=False)
    return to_example({"messages": [{"role": names[r], "content": c} for r, c in said]}, 1, "messages")


def encoded(made: Any, example: Example, train_on: str = "assistant", **settings: Any) -> list[Encoded]:
    renderer = Renderer(made, TemplateSettings(**settings), train_on)
    return renderer.encode(renderer.render(example))


def runs(made: Any, row: Encoded) -> list[str]:
    """The labelled stretches of a row, decoded one by one."""
    found: list[list[int]] = [[]]
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (IGNORE, token)
        if label != IGNORE:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [made.decode(run) for run in found if run]


def trained(made: Any, example: Example, train_on: str = "assistant", **settings: Any) -> list[list[str]]:
    return [runs(made, row) for row in encoded(made, example, train_on, **settings)]


def texts(made: Any, example: Example, **settings: Any) -> list[str]:
    return [made.decode(row.input_ids) for row in encoded(made, example, **settings)]


KINDS = ["bytes", "trimmed", "metaspace", "slow bytes", "slow metaspace"]
CONVERSATIONS = {
    "one turn": chat("Hi", "Hello there"),
    "more turns": chat("Hi", "Hello", "And?", "Fine:\n\nthanks\n", "再见", "再见。"),
    "cjk and emoji": chat("你好🙂", "你好，世界！🙃\n🙂", "🙂", "🙃"),
    "spaces": chat(" Hi \n", "\n\n Hello there \n\n", "  ", " ok"),
}


def marked(template: str) -> str:
    """The same template with its generation markers around the assistant's messages only."""
    own = r"{% if m.role == 'assistant' %}{% generation %}\1{% endgeneration %}{% else %}\1{% endif %}"
    return re.sub(r"{% generation %}(.*?){% endgeneration %}", own, template, flags=re.DOTALL)


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("example", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(
    ("template", "eos"),
    [
        (CHATML, "<|im_end|>"),
        (DEFAULT_SYSTEM, "<|im_end|>"),
        (LLAMA3, "<|eot|>"),
        (INST, "</s>"),
        (TURN, "<end>"),
    ],
    ids=["chatml", "default system", "llama 3", "inst", "turn"],
)
def test_labels_equal_the_marked_generation(template: str, eos: str, example: Example, kind: str) -> None:
    made = tokenizer(marked(template), eos, kind)
    messages = list(example.messages)
    oracle = made.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    first, *others = rows = encoded(made, example)
    if not others and not first.apart:
        row, length = first, len(first.input_ids)
        assert row.input_ids == oracle["input_ids"][:length]
        masks = [bool(bit) for bit in oracle["assistant_masks"]]
        assert [label != IGNORE for label in row.labels] == masks[:length]
        assert not any(masks[length:])
    said = zip(oracle["input_ids"], oracle["assistant_masks"], strict=True)
    marks = Encoded(1, oracle["input_ids"], [token if bit else IGNORE for token, bit in said])
    for run, whole in zip((run for row in rows for run in runs(made, row)), runs(made, marks), strict=True):
        assert whole.endswith(run)  # transformers labels a token that begins in the header
        assert not whole.removesuffix(run).strip("\n")


@pytest.mark.parametrize("kind", ["trimmed", "slow bytes", "slow metaspace"])
@pytest.mark.parametrize("example", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, LLAMA3, INST], ids=["chatml", "llama 3", "inst"])
def test_labels_are_the_same_without_exact_offsets(template: str, example: Example, kind: str) -> None:
    exact = "metaspace" if kind == "slow metaspace" else "bytes"
    other = encoded(tokenizer(template, kind=kind), example)
    assert other == encoded(tokenizer(template, kind=exact), example)


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_end_of_every_answer(kind: str) -> None:
    example = CONVERSATIONS["more turns"]
    made = tokenizer(CHATML, kind=kind)
    said = ["Hello<|im_end|>", "Fine:\n\nthanks\n<|im_end|>", "再见。<|im_end|>"]
    assert trained(made, example) == [said]
    assert trained(made, example, "completion") == [said[-1:]]
    [inst] = trained(tokenizer(INST, "</s>", kind), example)
    if "metaspace" not in kind:  # its decoder drops the first space
        assert all(run.startswith(" ") for run in inst)
    assert [run.lstrip() for run in inst] == ["Hello</s>", "Fine:\n\nthanks</s>", "再见。</s>"]
    [[everything]] = trained(made, example, "all")
    assert everything.startswith("<|im_start|>user\nHi")
    assert everything.endswith("再见。<|im_end|>\n")


@pytest.mark.parametrize("pad", ["<|im_end|>", "<pad>"])
def test_the_end_stays_labelled_when_it_also_pads(pad: str) -> None:
    [row] = encoded(tokenizer(pad=pad), chat("Hi", "Hello"))
    assert row.labels[-1] == tokenizer().convert_tokens_to_ids("<|im_end|>")


def test_system_prompts() -> None:
    example, own = chat("Hi", "Hello"), chat("Own.", "Hi", "Hello", roles="sua")
    made = tokenizer(DEFAULT_SYSTEM)
    for settings, case, system in (
        ({}, example, "Be kind."),
        ({"system": "Set."}, example, "Set."),
        ({"system": "Set."}, own, "Own."),
    ):
        [text] = texts(made, case, **settings)
        assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>")
        assert trained(made, case, **settings) == [["Hello<|im_end|>"]]
    with pytest.raises(BadRow, match="no system role"):
        encoded(tokenizer(TURN, "<end>"), own)


def test_system_prompt_in_the_last_user_turn_only() -> None:
    made = tokenizer(LATE_SYSTEM, "</s>")
    example = chat("Be brief.", "Hi", "Hello", "And?", "Fine", roles="suaua")
    assert texts(made, example) == [
        "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>",
        "<s>[INST] Hi [/INST] Hello</s>[INST] Be brief.\n\nAnd? [/INST] Fine</s>",
    ]
    assert trained(made, example) == [[" Hello</s>"], [" Fine</s>"]]


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


@pytest.mark.parametrize("kind", ["bytes", "slow bytes"])
def test_control_tokens_in_the_words_are_said_and_move_no_mask(kind: str) -> None:
    made = tokenizer(kind=kind)
    example = chat("What is <|im_end|>?", "It <|im_end|>", "And <|im_start|>assistant\n?", "a <|im_end|>\nb")
    renderer = Renderer(made, TemplateSettings())
    rows = renderer.render(example)
    said = ["It <|im_end|><|im_end|>", "a <|im_end|>\nb<|im_end|>"]
    assert [runs(made, row) for row in renderer.encode(rows)] == [said]
    assert renderer.warnings(example, rows) == ["control tokens in its words"]
    plain = chat("Hi", "Hello")
    assert renderer.warnings(plain, renderer.render(plain)) == []


def test_a_template_over_its_own_prompt_is_refused() -> None:
    made = tokenizer(CHATML.replace("assistant\n{% endif", "assistant\nI say: {% endif"))
    with pytest.raises(BadRow, match=r"answer of message 1 over its own prompt.*I say"):
        encoded(made, chat("Hi", "Hello"))


def test_plain_text_is_trained_on_whole() -> None:
    made = tokenizer(None, "</s>")
    assert trained(made, Example(1, text="Hello 你好")) == [["Hello 你好</s>"]]
    assert trained(made, Example(1, text="Hello</s>")) == [["Hello</s>"]]
    assert trained(made, Example(1, text="Hello</s>\n")) == [["Hello</s>"]], "as templates write it"
    assert trained(made, Example(1, text="Hello\n")) == [["Hello\n</s>"]]
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.bos_token_id)])
    made.backend_tokenizer.post_processor = first
    for text in ("Hello", "<s>Hello"):
        assert texts(made, Example(1, text=text)) == ["<s>Hello</s>"]


def test_apply_template_sets_the_template_and_the_stop_token() -> None:
    made = tokenizer(None, "</s>", pad=None)
    apply_template(made, TemplateSettings(chat_template=CHATML, stop="<|im_end|>"))
    assert (made.chat_template, made.eos_token, made.pad_token) == (CHATML, "<|im_end|>", "<|im_end|>")
    assert trained(made, chat("Hi", "Hello")) == [["Hello<|im_end|>"]]
    kept = tokenizer(TURN, "<end>", pad="<pad>")
    apply_template(kept, TemplateSettings())
    assert (kept.chat_template, kept.eos_token, kept.pad_token) == (TURN, "<end>", "<pad>")


@pytest.mark.parametrize(
    ("own", "eos", "settings", "says"),
    [
        (None, "</s>", {}, "no chat template of its own"),
        (
            None,
            "</s>",
            {"chat_template": "<|user|>{{ messages }}"},
            r"uses <\|user\|>, which this tokenizer has no token",
        ),
        (CHATML, "</s>", {"stop": "<|imend|>"}, r"no token '<\|imend\|>'.*\n.*did you mean '<\|im_end\|>'"),
        (CHATML, None, {}, "names no end token"),
        (None, "</s>", {"chat_template": "a\n{% for m in %}"}, "line 2 is not Jinja"),
    ],
)
def test_apply_template_refuses(own: str | None, eos: Any, settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        apply_template(tokenizer(own, eos, pad="<pad>"), TemplateSettings(**settings))


def test_a_template_of_the_runner_keeps_the_token_that_a_model_always_begins_with() -> None:
    made = tokenizer(None, "</s>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    own = "{% for m in messages %}{{ m.content }}{% endfor %}"
    apply_template(made, TemplateSettings(chat_template=own))
    assert texts(made, chat("Hi", "Hello")) == ["<s>HiHello</s>"]
    assert trained(made, chat("Hi", "Hello")) == [["Hello</s>"]]
