"""Values that no reader can use are refused by file and row, and nothing that is read waits for ever."""

import io
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.prepared import USER, answer, chat, jsonl, prepared, refusal, texts, trained

GOOD = {"prompt": "q", "completion": "a"}
DEEP, DEEPER = ("[" * levels + "]" * levels for levels in (300, 60_000))
BIG = "9" * 5000
OBJECTS = '{"a":' * 300 + "1" + "}" * 300

RAW: dict[str, tuple[str, str]] = {
    "nesting": (f'{{"prompt":"q","completion":"a","x":{DEEP}}}', "x is nested deeper than 100 levels"),
    "more nesting": (f'{{"prompt":"q","completion":"a","x":{DEEPER}}}', "is nested deeper than 100 levels"),
    "objects": (f'{{"prompt":"q","completion":"a","tools":[{OBJECTS}]}}', "tools is nested deeper than 100"),
    "integer": (f'{{"prompt":"q","completion":"a","n":{BIG}}}', "holds a number of more than 4,300 digits"),
    "surrogate": (
        r'{"prompt":"q \ud83d","completion":"a"}',
        r"prompt holds '\ud83d', half of a surrogate pair",
    ),
    "in a name": (
        r'{"\udc00":"x","prompt":"q","completion":"a"}',
        r"the name '\udc00' holds",
    ),
    "in an unread column": (
        r'{"prompt":"q","completion":"a","x":["\ud800"]}',
        r"x[0] holds '\ud800'",
    ),
    "in tools": (
        r'{"prompt":"q","completion":"a","tools":[{"name":"\ud800"}]}',
        r"tools[0].name holds '\ud800'",
    ),
    "in text of tools": (
        r'{"prompt":"q","completion":"a","tools":"[{\"name\":\"\\ud800\"}]"}',
        r"tools[0].name holds '\ud800'",
    ),
    "in reasoning": (
        r'{"prompt":"q","completion":[{"role":"assistant","content":"a","reasoning_content":"\udfff"}]}',
        r"completion[0].reasoning_content holds '\udfff'",
    ),
    "in a role": (r'{"prompt":[{"role":"\ud800","content":"q"}],"completion":"a"}', r"prompt[0].role holds"),
    "text of nesting": (
        json.dumps({**GOOD, "tools": DEEPER}),
        "tools is nested deeper than 100 levels",
    ),
    "text of an integer": (
        json.dumps({**GOOD, "tools": f"[{BIG}]"}),
        "tools holds a number of more than 4,300 digits",
    ),
    "text that names a key twice": (
        json.dumps({**GOOD, "tools": '[{"a":1,"a":2}]'}),
        "tools names 'a' twice",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_a_value_that_nothing_can_use_is_refused_by_row(tmp_path: Path, case: str) -> None:
    line, says = RAW[case]
    file = jsonl(tmp_path / "a.jsonl", GOOD, line)
    assert refusal(file).startswith(f"{file}:2: {says}")
    whole = tmp_path / "b.json"
    whole.write_text(f"[{json.dumps(GOOD)},\n {line}]")
    assert refusal(whole).startswith(f"{whole}, row 2: {says}")
    assert f"{whole}, row 2" in refusal(whole, clean=True, deduplicate=True)


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        (
            {"instruction": "q", "output": "a", "history": 5},
            "completion",
            "history must be a list of questions",
        ),
        ({"text": "q", "label": float("nan")}, "classification", "'label' must be the name or number"),
        ({"text": "q", "label": "\ud800"}, "classification", r"label holds '\ud800'"),
        (chat({"role": ["user"], "content": "q"}, answer()), "completion", "has the unknown role ['user']"),
        (
            {"text": "q", "completion": "a"},
            "completion",
            "has 'text' and 'completion', which are of two formats",
        ),
        ({"text": "q", "output": "a"}, "completion", "has 'text' and 'output', which are of two formats"),
    ],
)
def test_rows_that_mean_nothing_certain_are_refused(tmp_path: Path, row: dict, kind: Any, says: str) -> None:
    assert says in refusal(jsonl(tmp_path / "a.jsonl", row), kind)


def test_nesting_of_a_real_schema_is_read(tmp_path: Path) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(30):
        schema = {"type": "object", "properties": {"inner": schema}}
    row = {**GOOD, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    assert prepared(jsonl(tmp_path / "a.jsonl", row)).train.examples[0].tools == tuple(row["tools"])


def table(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_nulls_of_a_typed_table_go_and_nulls_of_json_text_stay(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"b": 2}}]
    messages = [[USER, answer("So:", tool_calls=[call])] for call in calls]
    tools = ['[{"function": {"name": "f", "default": null}}]'] * 2
    example = prepared(table(tmp_path / "a.parquet", messages=messages, tools=tools)).train.examples[1]
    assert example.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"b": 2}}
    assert example.tools == ({"function": {"name": "f", "default": None}},)


def test_a_sequence_of_objects_is_a_list_of_messages(tmp_path: Path) -> None:
    messages = pa.array([{"role": ["user", "assistant"], "content": ["q", "a"]}])
    assert trained(prepared(table(tmp_path / "a.parquet", messages=messages)).train) == ["a"]
    uneven = pa.array([{"role": ["user", "assistant"], "content": ["q"]}])
    assert "has the unknown role" in refusal(table(tmp_path / "b.parquet", messages=uneven))


BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"q\xff")]
)
TABLES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "not UTF-8": (
        lambda: {"prompt": BAD_TEXT},
        "row 2: its column 'prompt' (string) holds what",
    ),
    "bytes": (lambda: {"prompt": pa.array([b"q", b"q"])}, "row 1: 'prompt' must be text, got bytes"),
    "year 99999": (
        lambda: {"prompt": ["q", "q"], "when": pa.array([0, 3_093_527_980_800], pa.timestamp("s"))},
        "row 2: its column 'when' (timestamp[",
    ),
    "no such zone": (
        lambda: {"prompt": ["q", "q"], "when": pa.array([0, 1], pa.timestamp("ms", tz="Nowhere/X"))},
        "row 1: its column 'when' (timestamp[ms, tz=Nowhere/X]) holds what cannot be read",
    ),
    "null": (lambda: {"prompt": pa.array(["q", None])}, "row 2: has null in 'prompt'"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_read_is_refused_by_row(tmp_path: Path, case: str) -> None:
    columns, says = TABLES[case]
    file = table(tmp_path / "a.parquet", completion=["a", "b"], **columns())
    assert refusal(file).startswith(f"{file}, {says}")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    two = pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "completion", "prompt"])
    pq.write_table(two, tmp_path / "a.parquet")
    assert "a.parquet: has two columns of the name 'prompt'" in refusal(tmp_path / "a.parquet")


def test_odd_types_of_columns_that_are_not_read_do_no_harm(tmp_path: Path) -> None:
    odd = {"d": [Decimal("1.5")], "t": [datetime(2020, 1, 1, tzinfo=UTC)], "b": [b"\xff"]}
    file = table(tmp_path / "a.parquet", prompt=["q"], completion=["a"], **odd)
    assert prepared(file).notes == [f"{file}: columns not read: b (1), d (1), t (1)"]


def test_a_header_of_many_columns_is_read_at_once(tmp_path: Path) -> None:
    names = [f"column {n}" for n in range(20_000)]
    file = tmp_path / "a.csv"
    begin = time.monotonic()
    file.write_text(f"{','.join(names)}\n{','.join('x' * 20_000)}\n")
    said = refusal(file)
    file.write_text(f"prompt,completion,{','.join(names)}\nq,a,{','.join('x' * 20_000)}\n")
    notes = prepared(file).notes
    assert time.monotonic() - begin < 10  # 93 seconds when each name was compared with every right one
    assert "... (20,000 in all)] fit no format" in said
    assert len(said) < 2000
    assert "and 19,950 more" in notes[0]


def pipe(file: Path) -> None:
    os.mkfifo(file)


def bound(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


@pytest.mark.parametrize(("make", "kind"), [(pipe, "a named pipe"), (bound, "a socket")])
@pytest.mark.parametrize("key", ["data.path", "data.eval_path"])
def test_a_pipe_or_socket_is_refused_at_once(cli: Any, capsys: Any, make: Any, kind: str, key: str) -> None:
    make(Path("a.jsonl"))
    jsonl(Path("good.jsonl"), GOOD)
    paths = {"data.path": "good.jsonl", key: "a.jsonl"}
    words = [f"{name}={path}" for name, path in paths.items()]
    assert cli("recipe=inspect", "model=tiny", "data=file", *words).code == 2
    assert f"{key}=a.jsonl: is {kind}, not a file" in capsys.readouterr().err


def test_devices_and_pipes_in_folders_are_refused(tmp_path: Path) -> None:
    assert "data.path=/dev/zero: is a device, not a file" in refusal("/dev/zero")
    os.mkfifo(tmp_path / "a.jsonl")
    assert f"data.path={tmp_path}/a.jsonl: is a named pipe" in refusal(tmp_path)
    assert f"data.path={tmp_path}/a.jsonl: is a named pipe" in refusal(
        [{"path": str(tmp_path / "a.jsonl"), "weight": 2}]
    )


def test_files_that_are_no_tables_of_arrow_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, pa.table({"prompt": ["q"], "completion": ["a"]}).schema) as writer:
        writer.write_table(pa.table({"prompt": ["q"], "completion": ["a"]}))
    whole = stream.getvalue()
    (tmp_path / "a.arrow").write_bytes(whole)
    assert texts(prepared(tmp_path / "a.arrow").train) == [
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    ]
    for content in (b"", b"ARROW1", b"nothing", whole[:100], whole[:-30]):
        (tmp_path / "a.arrow").write_bytes(content)
        assert "a.arrow: " in refusal(tmp_path / "a.arrow")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"prompt,completion\ra,b\rc,d", "a.csv:1: is not CSV: a line ends with CR alone"),
        (
            "a.jsonl",
            b'{"prompt":"q","completion":"a"}\r{"prompt":"q","completion":"a"}',
            "Extra data at column 33",
        ),
        (
            "a.json",
            b'{"prompt":"q","completion":"a"}{"a":1}',
            "a.json:1: is not JSON: Extra data at column 32",
        ),
        ("a.jsonl", b"null\n", "a.jsonl:1: must be an object, got null"),
        ("a.json", b"[true]", "a.json, row 1: must be an object, got true"),
        ("a.json", b'[{"text":"a"},]', "a.json:1: is not JSON"),
        (
            "a.json",
            b'[{"text":"a"} {"text":"b"}]',
            "a.json:1: is not JSON: Expecting ',' delimiter",
        ),
        ("a.json", b'[{"text":"a"}]\n]', "a.json:2: is not JSON: Extra data at column 1"),
        ("a.json", b"[", "a.json:1: is not JSON"),
    ],
)
def test_text_that_is_no_table_is_refused_in_our_words(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)
