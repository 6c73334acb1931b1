"""Every row format becomes the same messages, and a row that cannot be used says why."""

import pytest

from runner.data.formats import to_example
from runner.data.messages import BadRow
from runner.data.rows.recognise import recognise
from runner.data.sources.columns import format_issue, suggested


def words(row: dict, row_format: str | None = None) -> list[tuple[str, str]]:
    name = row_format or recognise(row)
    assert name is not None
    return [(message["role"], message["content"]) for message in to_example(row, 1, name).messages]


QUESTION, ANSWER = ("user", "Why?"), ("assistant", "Because.")

SAME = {
    "alpaca": {"instruction": "Why?", "input": "", "output": "Because."},
    "alpaca without input": {"instruction": "Why?", "output": "Because."},
    "alpaca with null input": {"instruction": "Why?", "input": None, "output": "Because."},
    "messages": {
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    "capitals": {"conversations": [{"from": "Human", "value": "Why?"}, {"from": "GPT", "value": "Because."}]},
    "nulls of a typed table": {
        "messages": [
            {"role": None, "content": None, "from": "human", "value": "Why?"},
            {"role": "assistant", "content": "Because.", "from": None, "value": None, "tool_calls": None},
        ]
    },
    "another list is null": {
        "messages": None,
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
    },
    "json text": {
        "messages": '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]'
    },
    "text parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]},
            {"role": "assistant", "content": "Because."},
        ]
    },
    "pair": {"prompt": "Why?", "completion": "Because."},
    "pair of messages": {
        "prompt": [{"role": "user", "content": "Why?"}],
        "completion": [{"role": "assistant", "content": "Because."}],
    },
    "preference": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "preference with the prompt in both answers": {
        "prompt": "Why?",
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
    },
    "preference from alpaca": {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."},
    "preference from sharegpt": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "ends with the user": {
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
            {"role": "user", "content": "Thanks"},
        ]
    },
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_same_messages(row: dict) -> None:
    assert words(row) == [QUESTION, ANSWER]
    assert words({"system": "Be brief.", **row}) == [("system", "Be brief."), QUESTION, ANSWER]


def test_own_system_message_wins_over_the_column() -> None:
    row = {
        "system": "column",
        "messages": [{"role": "system", "content": "own"}, {"role": "assistant", "content": "Hi"}],
    }
    assert words(row) == [("system", "own"), ("assistant", "Hi")]


def test_alpaca_keeps_its_parts_apart_and_its_history() -> None:
    row = {
        "instruction": "翻译",
        "input": "早上好\n晚安",
        "output": "Good morning\nGood night",
        "history": [["你好", "您好！"], ["在吗", "在。"]],
    }
    messages = to_example(row, 1, "alpaca").messages
    assert [m["content"] for m in messages] == [
        "你好",
        "您好！",
        "在吗",
        "在。",
        "翻译\n早上好\n晚安",
        "Good morning\nGood night",
    ]
    assert (messages[4]["instruction"], messages[4]["input"]) == ("翻译", "早上好\n晚安")
    assert words({**row, "history": '[["你好", "您好！"]]'})[:2] == [
        ("user", "你好"),
        ("assistant", "您好！"),
    ]


def test_roles_of_tools_and_what_they_say() -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": None}}}
    row = {
        "tools": '[{"type": "function", "function": {"name": "sum", "description": null}}]',
        "conversations": [
            {"from": "human", "value": "1?"},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Add."},
            {"from": "observation", "value": "1"},
            {"from": "function_call", "value": "{}"},
            {"from": "function_response", "value": "2", "name": "sum"},
            {"from": "gpt", "value": "Two."},
        ],
    }
    example = to_example(row, 1, "messages")
    roles = [message["role"] for message in example.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert example.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": None}}}],
        "reasoning_content": "Add.",
    }
    assert example.messages[4]["name"] == "sum"
    assert example.tools == ({"type": "function", "function": {"name": "sum", "description": None}},)


def test_an_answer_of_tool_calls_only_is_not_empty() -> None:
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "tool_calls": [{"name": "sum"}]}]
    assert not to_example({"messages": turns}, 1, "messages").empty
    turns[1] = {"role": "assistant", "content": "  "}
    assert to_example({"messages": turns}, 1, "messages").empty


@pytest.mark.parametrize(
    ("row", "row_format", "says"),
    [
        ({"messages": []}, "messages", "must be a list of messages"),
        ({"messages": None}, "messages", "must be a list of messages"),
        ({"messages": ["hello"]}, "messages", r"messages\[0\] must be a message, got str 'hello'"),
        ({"messages": "[{"}, "messages", "not JSON"),
        (
            {"messages": [{"role": "asistant", "content": "x"}]},
            "messages",
            r"messages\[0\] has the unknown role 'asistant'; did you mean 'assistant'\?",
        ),
        ({"messages": [{"rolle": "user", "content": "x"}]}, "messages", "has no role.*did you mean 'rolle'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages", "unknown role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "no text content, got null"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages", "no text content, got int 3"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages", "no text content"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "no assistant message"),
        (
            {"messages": [{"role": "assistant", "content": "x", "weight": 0}]},
            "messages",
            "no assistant message to train on",
        ),
        ({"instruction": "a", "output": None}, "alpaca", "has null in 'output'"),
        ({"instruction": "a"}, "alpaca", "has no 'output'"),
        ({"instruction": "a", "output": 7}, "alpaca", "'output' must be text, got int 7"),
        ({"instruction": "a", "output": "b", "system": 7}, "alpaca", "'system' must be text"),
        (
            {"instruction": "a", "output": "b", "history": [["q"]]},
            "alpaca",
            r"history\[0\] must be a question",
        ),
        ({"instruction": "a", "output": "b", "history": [["q", None]]}, "alpaca", r"history\[0\]"),
        ({"instruction": "a", "output": "b", "tools": "x"}, "alpaca", "tools is text that is not JSON"),
        ({"instruction": "a", "output": "b \ud83d"}, "alpaca", "half of a surrogate pair"),
        ({"chosen": "Human: a\nAssistant: b", "rejected": "c"}, "preference", "no prompt"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, "preference", "null in 'chosen'"),
        ({"text": None}, "text", "null in 'text'"),
    ],
)
def test_bad_row(row: dict, row_format: str, says: str) -> None:
    with pytest.raises(BadRow, match=says):
        to_example(row, 1, row_format)


@pytest.mark.parametrize(
    ("label", "liked", "name"), [(1.0, True, "1"), (0.0, False, "0"), (1, True, "1"), ("1.0", True, "1.0")]
)
def test_whole_numbers_of_a_table_with_gaps_are_labels(label: object, liked: bool, name: str) -> None:
    row = {"prompt": "q", "completion": "a", "label": label}
    assert to_example(row, 1, "feedback", kind="unpaired_preference").label is liked
    row = {"text": "a", "label": label}
    assert to_example(row, 1, "classification", kind="classification").label == name


def test_formats_are_recognised_by_their_columns() -> None:
    assert recognise(dict.fromkeys(["text"])) == "text"
    assert recognise(dict.fromkeys(["prompt", "chosen", "rejected"])) == "preference"
    assert recognise(dict.fromkeys(["instruction", "input", "output", "text"])) == "alpaca"
    assert recognise(dict.fromkeys(["question", "answer"])) is None


def test_rows_of_another_recipe_are_told_what_this_one_wants() -> None:
    rows = {"prompt": "a", "completion": "b"}
    said = suggested(rows, "preference")
    assert said.endswith("this one wants preference: chosen + rejected")
    assert "better: chosen" in suggested({"a": 1, "b": 2}, "preference")
    found = format_issue("alpaca", True, rows, rows, rows, "completion")
    assert found is not None
    assert found[1] == "they fit data.format=prompt_completion"
