"""The template that a config names is set, with its stop token, or refused."""

from typing import Any

import pytest
from tokenizers import processors

from helpers.templates import CHATML, TURN, chat, encoded, texts, tokenizer, trained
from runner.config.settings import TemplateSettings
from runner.core.errors import ConfigError
from runner.data.chat_template_check import apply_template
from runner.data.messages import BadRow


def test_a_template_over_its_own_prompt_is_refused() -> None:
    made = tokenizer(CHATML.replace("assistant\n{% endif", "assistant\nI say: {% endif"))
    with pytest.raises(BadRow, match=r"answer of message 1 over its own prompt.*I say"):
        encoded(made, chat("Hi", "Hello"))


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
