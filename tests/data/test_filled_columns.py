"""A row is in the format whose columns it fills, where it has the columns of several."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers.prepared import USER, answer, chat, jsonl, prepared, refusal, trained

PAIR = {"prompt": "q", "completion": "pair"}
TALK = {"messages": [USER, answer("talk")]}
ALPACA = {"instruction": "q", "output": "alpaca"}
EMPTY = [None, [], "[]", " [] ", "", "null", "{}", {}]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("empty", EMPTY, ids=repr)
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_an_empty_conversation_beside_a_pair_is_none(tmp_path: Path, key: str, empty: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", {key: empty, **PAIR}, PAIR | {"prompt": "r", key: empty})
    assert trained(prepared(file).train) == ["pair", "pair"]
    feedback = [{key: empty, **PAIR, "label": True}, {**PAIR, "prompt": "r", "label": False, key: empty}]
    assert trained(prepared(jsonl(file, *feedback), "unpaired_preference").train) == ["pair", "pair"]
    sides = {"chosen": "good", "rejected": "bad"}
    assert trained(prepared(jsonl(file, {key: empty, "prompt": "q", **sides}), "preference").train)


@pytest.mark.parametrize("empty", [None, "[]"])
def test_an_empty_conversation_beside_another_is_not_taken(tmp_path: Path, empty: Any) -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "talk"}]
    file = jsonl(tmp_path / "a.jsonl", {"messages": empty, "conversations": talk})
    assert trained(prepared(file).train) == ["talk"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": None, "instruction": None, "output": None, **PAIR}, "pair"),
        ({"instruction": None, "output": None, **PAIR}, "pair"),
        ({"instruction": "", "output": "", **PAIR}, "pair"),
        ({"chosen": None, "rejected": None, **PAIR}, "pair"),
        ({"prompt": None, "completion": None, **ALPACA}, "alpaca"),
        ({"prompt": None, "completion": None, **TALK}, "talk"),
    ],
)
def test_columns_of_another_format_that_are_empty_do_not_count(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    assert trained(prepared(jsonl(tmp_path / "a.jsonl", row)).train) == [said]


def test_a_row_that_fills_another_format_than_the_file_is_told_so(tmp_path: Path) -> None:
    rows = {"prompt": None, "completion": None, **TALK}, {**PAIR, "messages": "[]"}
    other = "is in the format 'prompt_completion', but"
    file = jsonl(tmp_path / "a.jsonl", *rows)
    assert f"a.jsonl:2: {other} the file began in 'messages': one format a file" in refusal(file)
    assert f"a.jsonl:2: {other} is read as 'messages': one format" in refusal(file, format="messages")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        # a hole in the format that the row fills is no other format
        ({"chosen": None, "rejected": "bad", **PAIR}, "has null in 'chosen'"),
        ({"instruction": "q", "output": None, **PAIR}, "has null in 'output'"),
        # text may be what every row has besides
        ({"text": "x", "prompt": None, "completion": None}, "has null in 'prompt'; data.format=text reads"),
        ({"text": "x", "messages": "[]"}, "must be a list of messages, got list []; data.format=text reads"),
        ({"messages": None, "prompt": None, "completion": None}, "must be a list of messages, got null"),
    ],
)
def test_a_hole_is_still_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    assert says in refusal(jsonl(tmp_path / "a.jsonl", row))


def test_a_masked_answer_is_not_called_empty(tmp_path: Path) -> None:
    masked, file = answer("words", weight=0), tmp_path / "a.jsonl"
    said = refusal(jsonl(file, chat(USER, masked, label=True)), "unpaired_preference")
    assert "a.jsonl:1: the answer in 'messages' is masked (weight, loss or train)" in said
    said = refusal(jsonl(file, {"prompt": "q", "completion": [masked], "label": True}), "unpaired_preference")
    assert "the answer in 'completion' is masked" in said
    pair = {"chosen": [USER, answer("words", train=False)], "rejected": [USER, answer("other")]}
    assert "the answer in 'chosen' is masked" in refusal(jsonl(file, pair), "preference")
    assert "to train on: all are masked (weight, loss or train)" in refusal(jsonl(file, chat(USER, masked)))
    said = refusal(jsonl(file, chat(USER, answer(" "), label=True)), "unpaired_preference")
    assert "the answer in 'messages' is empty" in said


CALL = {"name": "get", "arguments": {"city": "Oslo"}}


@pytest.mark.parametrize("extra", [{}, {"strict": True}, {"description": "d"}])
def test_the_same_call_in_two_forms_is_one(tmp_path: Path, extra: dict[str, Any]) -> None:
    both = {
        "tool_calls": [{"id": "c", "function": {**CALL, **extra}}],
        "function_call": {**CALL, "arguments": json.dumps(CALL["arguments"])},
    }
    swapped = {"tool_calls": [{"function": CALL}], "function_call": {**CALL, **extra}}
    for calls in (both, swapped):
        (example,) = prepared(jsonl(tmp_path / "a.jsonl", chat(USER, answer("x", **calls)))).train.examples
        (call,) = example.messages[-1]["tool_calls"]
        assert call["function"]["arguments"] == {"city": "Oslo"}
    other = {**both, "function_call": {**CALL, "arguments": {"city": "Rome"}}}
    said = refusal(jsonl(tmp_path / "a.jsonl", chat(USER, answer("x", **other))))
    assert "tool_calls and another function_call" in said


def test_a_prompt_whose_call_is_written_otherwise_stands_once(tmp_path: Path) -> None:
    """The answer's column repeats the prompt, with an id and a key more in its call."""
    result = {"role": "tool", "content": "rain"}
    first = [USER, answer("", tool_calls=[{"function": CALL}]), result]
    again = [USER, answer("", tool_calls=[{"id": "c", "function": {**CALL, "strict": True}}]), result]
    row = {"prompt": first, "completion": [*again, answer("It rains.")]}
    (example,) = prepared(jsonl(tmp_path / "a.jsonl", row)).train.examples
    assert [message["role"] for message in example.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("name", [" completion", "completion ", "comp:letion", "comp, letion", "comp{etion"])
def test_the_mapping_that_is_named_can_be_typed(tmp_path: Path, name: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "q", name: "said"})
    hint = refusal(file).partition("did you mean '")[2].partition("'?")[0]
    columns = OverridesParser.create().parse_override(hint).value()
    assert columns == {name: "completion"}
    assert trained(prepared(file, columns=columns).train) == ["said"]
