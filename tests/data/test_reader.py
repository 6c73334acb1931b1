"""Files of every kind are read alike, and every mistake names its file and its line or row."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.prepared import prepared
from runner.config.settings import DataSettings
from runner.core.errors import ConfigError
from runner.data.formats import Example
from runner.data.issue_list import SHOWN_ISSUES
from runner.data.reader import read_sources

ROWS = [{"prompt": f"Question {n}, 你好 🙂", "completion": f"Answer {n}\nof two lines"} for n in range(4)]


def read(path: Any, **settings: Any) -> list[Example]:
    with TemporaryDirectory() as folder:
        sources = read_sources(path, DataSettings(**settings), "data.path", 0, Path(folder))
    return [example for source in sources for example in source.examples]


def answers(path: Any, **settings: Any) -> list[str]:
    return [example.answer for example in read(path, **settings)]


def refusal(path: Any, **settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path, **settings)
    return [str(issue) for issue in caught.value.issues]


def jsonl(rows: list[dict], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def csv_text(rows: list[dict], separator: str = ",") -> str:
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    cells = [['"' + str(cell).replace('"', '""') + '"' for cell in line] for line in lines]
    return "".join(separator.join(line) + "\r\n" for line in cells)


WRITTEN = {
    "a.jsonl": jsonl(ROWS),
    "crlf.jsonl": jsonl(ROWS, end="\r\n"),
    "blank.jsonl": "\n\n" + jsonl(ROWS, end="\n\n"),
    "mark.jsonl": "\ufeff" + jsonl(ROWS),
    "no-last-end.jsonl": jsonl(ROWS).rstrip("\n"),
    "a.json": json.dumps(ROWS),
    "spread.json": "\ufeff\n" + json.dumps(ROWS, indent=2),
    "lines.json": jsonl(ROWS),
    "array.jsonl": json.dumps(ROWS),
    "a.csv": csv_text(ROWS),
    "mark.csv": "\ufeff" + csv_text(ROWS),
    "a.tsv": csv_text(ROWS, "\t"),
    "A.JSONL": jsonl(ROWS),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_same_rows_from_every_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(WRITTEN[name], encoding="utf-8", newline="")
    examples = read(tmp_path / name)
    assert [example.answer for example in examples] == [row["completion"] for row in ROWS]
    assert [example.messages[0]["content"] for example in examples] == [row["prompt"] for row in ROWS]


def test_parquet_with_lists_of_structs(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "name": "Bo"}]
    pq.write_table(pa.Table.from_pylist([{"messages": chat}, {"messages": chat[:2]}]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    assert [dict(m) for m in read(tmp_path / "a.parquet")[1].messages] == chat
    assert answers(tmp_path / "b.parquet") == [row["completion"] for row in ROWS]
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    assert "c.parquet: cannot be read as Parquet" in refusal(tmp_path / "c.parquet")[0]


@pytest.mark.parametrize("save", ["to_parquet", "save_to_disk"])
def test_classes_have_the_names_that_datasets_saves_beside_their_numbers(tmp_path: Path, save: str) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    saved = tmp_path / "rows.parquet"

    def labels(numbers: list[int], kind: Any = "classification", **columns: list[str]) -> list[Any]:
        rows = {"text": list("abc")[: len(numbers)], "label": numbers, **columns}
        table = Dataset.from_dict(rows, Features(features | dict.fromkeys(columns, Value("string"))))
        getattr(table, save)(str(saved))
        return [example.label for example in prepared(saved, kind).train.examples]

    assert labels([1, 0, 1]) == ["pos", "neg", "pos"]
    with pytest.raises(ConfigError, match="has the class -1; those of its file are 0 to 1"):
        labels([1, -1])
    # whether an answer was liked is a number
    assert labels([1, 0], "unpaired_preference", prompt=["p", "q"], completion=["a", "b"]) == [True, False]


def test_messages_as_json_text_in_csv(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": 'Say "hi", please'}, {"from": "gpt", "value": "hi"}]
    file = tmp_path / "a.csv"
    file.write_text(csv_text([{"conversations": json.dumps(chat)}, {"conversations": "[{"}]))
    [issue] = refusal(file)
    assert issue.startswith(f"{file}, row 2: conversations is text that is not JSON")
    file.write_text(csv_text([{"conversations": json.dumps(chat)}]))
    assert [m["content"] for m in read(file)[0].messages] == ['Say "hi", please', "hi"]


def test_folder_reads_every_file_and_names_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(jsonl(ROWS[:1]))
    (tmp_path / "a.CSV").write_text(csv_text(ROWS[1:2]))
    (tmp_path / "c.json").write_text(json.dumps([{"text": "plain"}]))
    (tmp_path / "._b.jsonl").write_bytes(b"\x00\xff")
    (tmp_path / "README.md").write_text("about")
    assert answers(tmp_path) == [ROWS[1]["completion"], ROWS[0]["completion"], "plain"]
    (tmp_path / "b.jsonl").write_text(jsonl(ROWS[:1]) + '{"prompt": "x"}\n')
    assert refusal(tmp_path) == [f"{tmp_path}/b.jsonl:2: has no 'completion'; it has ['prompt']"]
    (tmp_path / "empty").mkdir()
    assert "the folder holds none of .json" in refusal(tmp_path / "empty")[0]


def test_all_mistakes_of_a_file_together_in_order(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        b"",
        b'{"messages": [{"role": "asistant", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b"[1]",
        b'{"messages": []}',
        b'{"prompt": "a", "completion": "b"}',
        b'{"mesages": []}',
        b'{"messages": [{"role": "user", "cont',
    ]
    file.write_bytes(b"\n".join(lines))
    issues = refusal(file)
    assert [issue.split(": ")[0] for issue in issues] == [f"{file}:{n}" for n in range(3, 11)]
    for issue, says in zip(
        issues,
        (
            "did you mean 'assistant'",
            "no text content",
            r"is not UTF-8 (b'\xff')",
            "must be an object, got list",
            "must be a list of messages",
            "is in the format 'prompt_completion', but the file began in 'messages'",
            "has no 'messages'; it has ['mesages']; is it 'mesages'?",
            "is not JSON: Unterminated string",
        ),
        strict=True,
    ):
        assert says in issue


def test_mistakes_of_all_sources_together_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("x\n" * 15)
    (tmp_path / "b.jsonl").write_text("x\n" * 15)
    issues = refusal([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert f"{tmp_path}/b.jsonl:5" in issues[SHOWN_ISSUES - 1]
    assert issues[SHOWN_ISSUES:] == ["data.path: and 10 more issues like these"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", "", "a.jsonl: holds no rows"),
        ("a.jsonl", "\n \n", "a.jsonl: holds no rows"),
        ("a.json", "[]", "a.json: holds no rows"),
        ("a.csv", "prompt,completion\n", "a.csv: holds no rows"),
        ("a.json", '[\n{"text": "a"},\n{"text": b}]', "a.json:3: is not JSON: Expecting value at column 10"),
        ("a.json", '[{"text": "a"}, 3]', "a.json, row 2: must be an object, got int"),
        ("a.json", '{\n "data": [{"text": "a"}]\n}', "holds one object with the keys ['data']"),
        ("a.csv", "prompt,completion\na,b\nc\n", "a.csv:3: has 1 cells, but the header names 2"),
        ("a.csv", "prompt,completion\na,b,c\n", "a.csv:2: has 3 cells, but the header names 2"),
        ("a.csv", 'prompt,completion\na,"b\n', "a.csv:2: is not CSV: unexpected end of data"),
        ("a.txt", "hello", "unknown file type '.txt'"),
    ],
)
def test_unreadable(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    assert says in refusal(tmp_path / name)[0]


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_bad_utf8_names_the_line(tmp_path: Path, name: str) -> None:
    start = b'[{"text": "a"},\n' if name == "a.json" else b"text\na\n"
    (tmp_path / name).write_bytes(start + b'{"text": "caf\xe9"}]')
    line = start.count(b"\n") + 1
    assert f"{name}:{line}: byte" in refusal(tmp_path / name)[0]


def test_unknown_columns_are_listed_with_the_nearest_right_names(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"instuction": "a", "outputs": "b"}\n')
    [issue] = refusal(file)
    assert "the columns ['instuction', 'outputs'] fit no format" in issue
    assert "data.columns={instuction: instruction, outputs: output}" in issue
    file.write_text('{"question": "a", "answer": "b"}\n' * 30)
    [issue] = refusal(file)
    assert "data.columns={question: prompt, answer: completion}" in issue


def test_given_format_must_fit(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 30)
    [issue] = refusal(file, format="alpaca")
    assert "has no 'instruction', which the format 'alpaca' needs; it has ['completion', 'prompt']" in issue
    [issue] = refusal([{"path": str(file), "format": "alpca"}])
    assert "unknown format 'alpca'" in issue
    assert "did you mean 'alpaca'?" in issue
    file.write_text('{"text": "a", "prompt": "b", "completion": "c"}\n')
    assert answers(file, format="text") == ["a"]


def test_columns_map_the_names_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("question,answer,prompt\na,b,unused\n")
    mapping = {"question": "prompt", "answer": "completion"}
    assert [m["content"] for m in read(file, columns=mapping)[0].messages] == ["a", "b"]
    assert answers([{"path": str(file), "columns": mapping}], columns={"other": "prompt"}) == ["b"]
    [issue] = refusal(file, columns={"qestion": "prompt", "answer": "completion"})
    assert "maps 'qestion', which the file lacks; it has ['answer', 'prompt', 'question']" in issue
    assert "did you mean 'question'?" in issue
    [issue] = refusal(file, columns={"completion": "answer"})
    assert "the file's name comes first: {answer: completion}" in issue


def test_weights(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(jsonl(ROWS))
    two.write_text(jsonl([{"text": "t"}]))
    for weight, count in ((0.5, 2), (1, 4), (2, 8), (2.5, 10)):
        mixed = answers([{"path": str(one), "weight": weight}, str(two)])
        assert len(mixed) == count + 1
        assert mixed == answers([{"path": str(one), "weight": weight}, str(two)])
        each = [mixed.count(row["completion"]) for row in ROWS]
        assert max(each) - min(each) <= 1
    for weight in (0, -1, "2", None, True, float("nan"), float("inf")):
        assert "must be a number above 0" in refusal([{"path": str(one), "weight": weight}])[0]
    assert "leaves none of the 4 rows" in refusal([{"path": str(one), "weight": 0.01}])[0]


def test_rows_know_where_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + jsonl(ROWS))
    (tmp_path / "b.csv").write_text(csv_text(ROWS))
    assert read(tmp_path / "a.jsonl")[1].where == f"{tmp_path}/a.jsonl:3"
    assert read(tmp_path / "b.csv")[1].where == f"{tmp_path}/b.csv, row 2"


def test_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    prints = []
    for content in (jsonl(ROWS), jsonl(ROWS), jsonl(ROWS[:3])):
        file.write_text(content)
        prints.append(read_sources(str(file), DataSettings(), "data.path", 0, tmp_path)[0].fingerprint)
    assert prints[0] == prints[1] != prints[2]
