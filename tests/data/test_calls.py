"""Tools and calls in every shape that data sets have, and messages that cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.prepared import TOOLS, USER, answer, chat, jsonl, prepared, refusal, texts, trained

ARGUMENTS = {"city": "Oslo", "unit": None}
CALL = {"type": "function", "id": "c1", "function": {"name": "get", "arguments": ARGUMENTS}}
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"unit": {"default": None}}}}


as_text = json.dumps


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": as_text([CALL])},
        {"tool_calls": [as_text(CALL)]},
        {"tool_calls": [{"function": {"name": "get", "arguments": as_text(ARGUMENTS)}}]},
        {"tool_calls": [{"name": "get", "arguments": ARGUMENTS}]},
        {"tool_calls": [{"name": "get", "parameters": ARGUMENTS}]},
        {"function_call": {"name": "get", "arguments": as_text(ARGUMENTS)}},
    ],
    ids=lambda calls: str(calls)[:40],
)
@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [TOOL]},
        {"tools": as_text([TOOL])},
        {"tools": [as_text(TOOL)]},
        {"functions": [TOOL["function"]]},
        {"functions": [TOOL], "tools": ""},
    ],
    ids=lambda tools: str(tools)[:30],
)
def test_tools_and_calls_in_every_shape_are_the_same(tmp_path: Path, calls: dict, tools: dict) -> None:
    row = chat(USER, answer(None, **calls), {"role": "function", "name": "get", "content": "3"}, answer("3"))
    data = prepared(jsonl(tmp_path / "a.jsonl", {**row, **tools}), template=TOOLS)
    assert trained(data.train) == ['CALL:get:{"city": "Oslo", "unit": null}<|im_end|>3']
    assert texts(data.train)[0].startswith(f"TOOL:{as_text(TOOL)}<|im_start|>user")
    renamed = ["functions, which are read as tools"] * ("functions" in tools)
    assert [note.partition(" with ")[2].rpartition(", ")[0] for note in data.notes] == renamed


@pytest.mark.parametrize("none", ["null", "[]", "", None, []])
def test_no_tools_in_every_shape(tmp_path: Path, none: Any) -> None:
    data = prepared(
        jsonl(tmp_path / "a.jsonl", chat(USER, answer(tool_calls=none), tools=none)), template=TOOLS
    )
    assert texts(data.train) == ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"]
    assert data.notes == []


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"tool_calls": 1}, "messages[1].tool_calls must be a list of calls, got int 1"),
        ({"tool_calls": "x"}, "messages[1].tool_calls is text that is not JSON"),
        ({"tool_calls": [5]}, "messages[1].tool_calls must be a list of calls"),
        ({"tool_calls": [{"id": "x"}]}, "messages[1].tool_calls[0] names no function; it has ['id']"),
        (
            {"tool_calls": [{"name": "f", "arguments": "{"}]},
            "tool_calls[0].arguments is text that is not JSON",
        ),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, "tool_calls[0].arguments must be an object"),
        (
            {
                "tool_calls": [{"name": "f", "arguments": {}}],
                "function_call": {"name": "g", "arguments": "{}"},
            },
            "messages[1] has tool_calls and another function_call: one of them",
        ),
        ({"tool_calls": [{"name": "f", "arguments": '{"a": NaN}'}]}, "arguments holds NaN or an infinity"),
        ({"tool_calls": [{"name": "f", "arguments": {"a": [1e999]}}]}, "arguments holds NaN or an infinity"),
        ({"function_call": "auto"}, "messages[1].function_call is text that is not JSON"),
        ({"reasoning_content": ["x"]}, "messages[1].reasoning_content must be text, got list"),
        ({"from": "human"}, "messages[1] has the role str 'assistant' and the from str 'human': one of them"),
        ({"value": "no"}, "messages[1] has the content str 'yes' and the value str 'no': one of them"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused(tmp_path: Path, message: dict, says: str) -> None:
    assert says in refusal(jsonl(tmp_path / "a.jsonl", chat(USER, answer(**message))))
    if "tool_calls" in message:
        asks = {**USER, "tool_calls": [CALL]}
        assert "messages[0] has calls, and the role 'user'" in refusal(
            jsonl(tmp_path / "a.jsonl", chat(asks, answer()))
        )


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_a_schema_that_json_cannot_hold_is_refused(tmp_path: Path, key: str) -> None:
    schema = {"name": "f", "parameters": {"type": "number", "maximum": float("nan")}}
    assert f"{key} holds NaN or an infinity" in refusal(
        jsonl(tmp_path / "a.jsonl", {**chat(USER, answer()), key: [schema]})
    )


def test_what_is_missing_in_a_message_is_said_in_our_words(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", chat({"role": "user", "text": "hi"}, answer()))
    assert "messages[0] has no text content, got null; it has ['role', 'text']; a message has" in refusal(
        file
    )
    said = refusal(jsonl(file, {"prompt": "json?", "completion": {"a": 1}}))
    assert "'completion' must be text, or messages with role and content" in said
    assert "got an object with ['a']" in said
