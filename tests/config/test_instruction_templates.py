"""The prompts for instruction rows: their sections, and the end token behind the answer."""

import json
from pathlib import Path

import pytest

ROWS = [
    {"instruction": "Add them.", "input": "2 and 3", "output": "5"},
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
]
ENGLISH, CHINESE = ("### Instruction:\n", "### Input:\n", "### Response:\n"), ("### 指令：\n", "### 输入：\n")
PREAMBLE = "Below is an instruction that describes a task"
PREAMBLE_ZH = "以下是描述任务的指令"
TEMPLATES = {
    "alpaca": (PREAMBLE, *ENGLISH),
    "alpaca-zh": (PREAMBLE_ZH, *CHINESE, "### 回复：\n"),
    "instruction": ("", *ENGLISH),
    "instruction-zh": ("", *CHINESE, "### 回答：\n"),
}


@pytest.fixture
def inspected(cli):
    def inspect(*words: str):
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        run = cli("recipe=inspect", "model=tiny", "data=file", "data.path=rows.jsonl", *words)
        assert run.code == 0
        return run.lines("inspect.jsonl"), run.record["notes"]

    return inspect


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_part_stands_in_its_section(inspected, name):
    preamble, *heads = TEMPLATES[name]
    (first, second), notes = inspected(f"template={name}")
    instruction, given, answer = heads
    assert first["text"].startswith(preamble or instruction)
    assert first["text"].endswith(f"{instruction}Add them.\n\n{given}2 and 3\n\n{answer}5<|im_end|>")
    assert second["text"].endswith(f"{instruction}Say hello.\n\n{answer}Hello.<|im_end|>")
    assert second["text"].startswith(preamble or instruction)
    assert first["trained_text"] == "5<|im_end|>"
    assert not any("left out" in note for note in notes)


def test_an_input_that_a_template_leaves_out_is_said(inspected):
    template = "{% for m in messages %}{{ m.instruction or m.content }}: {% endfor %}"
    Path("t.jinja").write_text(template.replace("m.content", "(m.content + eos_token)"))
    _, notes = inspected("template.chat_template=t.jinja")
    assert any("user message left out by the template" in note for note in notes)
