"""What is trained on is the assistant's words and the end of its turn, whatever the template does.

The templates are small ones in the manner of well-known families. Where a family can be written with
``{% generation %}`` markers, transformers' own mask is the oracle.
"""

import re

import pytest
from tokenizers import processors

from helpers.templates import (
    CHATML,
    DEFAULT_SYSTEM,
    INST,
    LATE_SYSTEM,
    TURN,
    chat,
    encoded,
    runs,
    texts,
    tokenizer,
    trained,
)
from runner.config.settings import TemplateSettings
from runner.data.formats import Example
from runner.data.messages import BadRow
from runner.data.template import IGNORE, Encoded, Renderer

LLAMA3 = """{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|head|>

{% generation %}{{ m.content | trim }}<|eot|>{% endgeneration %}{% endfor %}
{%- if add_generation_prompt %}<|head|>assistant<|head|>

{% endif %}"""

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
