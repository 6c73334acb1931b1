"""Small chat templates with traits of public ones, tokenizers of several kinds, what is trained with them."""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from runner.config.settings import TemplateSettings
from runner.data.formats import Example, to_example
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
