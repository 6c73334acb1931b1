"""A value is quoted so that Hydra reads the same text again."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runner.core.hydra_quoting import hydra_value, typed_again

TEXTS = [
    *("run", "a/b.c-d_e+1", "outputs/2026-11-28/18-06-30-sft"),
    *("", " ", "a b", "a,b", "a=b", "[a]", "{a: b}", "${lora.r}", "$HOME", "%20", "ü", "你好", "a\tb"),
    *("it's", "'", "''", '"', "a\\b", "a\\", "a\\\\", "\\'", "a\\'b", "C:\\runs\\x\\"),
    *("12", "1e3", "-1", "nan", "true", "False", "null"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_hydra_reads_the_same_text(text):
    override = OverridesParser.create().parse_override(f"output_dir={hydra_value(text)}")
    assert override.value() == text


@pytest.mark.parametrize("text", TEXTS[:3])
def test_plain_text_is_not_quoted(text):
    assert hydra_value(text) == text


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("{a: [recipe=sft]}", {"a": ["recipe=sft"]}),
        (
            "{a: [recipe=sft, lora.r=4], b: ['recipe=dpo']}",
            {"a": ["recipe=sft", "lora.r=4"], "b": ["recipe=dpo"]},
        ),
        ("[recipe=sft,lora.r=4,3,x.y]", ["recipe=sft", "lora.r=4", 3, "x.y"]),
        ("[lora.target_modules=[q,k],what is?]", ["lora.target_modules=[q,k]", "what is?"]),
    ],
)
def test_the_words_of_a_list_are_quoted_one_by_one(value, meant):
    [typed] = shlex.split(typed_again("stages", value))
    assert OverridesParser.create().parse_override(typed).value() == meant
