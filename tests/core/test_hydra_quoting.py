"""A value is quoted so that Hydra reads the same text again."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runner.core.hydra_quoting import hydra_value

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
