"""Files that are nearly right: each is read as it is meant, or refused by file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.prepared import USER, answer, chat, jsonl, prepared, refusal, trained

ROW = '{"prompt": "q", "completion": "a"}'

READ: dict[str, tuple[str, str]] = {
    "a line of a form feed": ("a.jsonl", f"{ROW}\n\f\n"),
    "an empty name": ("a.jsonl", f'{{"": "x", {ROW[1:]}\n'),
    "CR and LF": ("a.jsonl", f"{ROW}\r\n"),
    "no end of line": ("a.jsonl", ROW),
}


@pytest.mark.parametrize("case", READ)
def test_it_is_read_as_it_is_meant(tmp_path: Path, case: str) -> None:
    name, text = READ[case]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert trained(prepared(tmp_path / name).train) == ["a"]


NESTED, BIG = "[" * 300 + "]" * 300, "9" * 5000
REFUSED: dict[str, tuple[str, str, str]] = {
    "objects parted by U+2028": ("a.jsonl", f"{ROW}\u2028{ROW}\n", "a.jsonl:1: is not JSON: Extra data"),
    "objects on one line": ("a.json", ROW + ROW, "a.json:1: is not JSON: Extra data"),
    "lines that end with CR": ("a.jsonl", f"{ROW}\r{ROW}\r", "a.jsonl:1: is not JSON: Extra data"),
    "a table whose lines end with CR": ("a.csv", "prompt,completion\rq,a\r", "a line ends with CR alone"),
    "nesting in a cell": ("a.csv", f'prompt,completion,tools\nq,a,"{NESTED}"\n', "row 1: tools is nested"),
    "a huge number in a cell": ("a.csv", f'messages\n"{BIG}"\n', "row 1: messages holds a number of more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_its_place(tmp_path: Path, case: str) -> None:
    name, text, says = REFUSED[case]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert says in refusal(tmp_path / name)


@pytest.mark.parametrize(("weight", "says"), [("0", "str '0'"), ([], "list []"), (0.5, "float 0.5")])
def test_a_weight_of_another_kind_is_refused(tmp_path: Path, weight: Any, says: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", chat(USER, answer(weight=weight)))
    assert f"messages[1] has the weight {says}; allowed: 0 (only read) or 1 (learnt)" in refusal(file)


@pytest.mark.parametrize(("weight", "answers"), [(True, ["a<|im_end|>b"]), (False, ["b"])])
def test_a_weight_of_true_or_false_is_one_or_zero(tmp_path: Path, weight: bool, answers: list[str]) -> None:
    file = jsonl(tmp_path / "a.jsonl", chat(USER, answer("a", weight=weight), USER, answer("b")))
    assert trained(prepared(file).train) == answers


def test_a_map_of_parquet_is_no_message(tmp_path: Path) -> None:
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    messages = pa.array([[[("role", "user"), ("content", "q")]]], kind)
    pq.write_table(pa.table({"messages": messages}), tmp_path / "a.parquet")
    assert "row 1: messages[0] must be a message, got list [['role', 'user']" in refusal(
        tmp_path / "a.parquet"
    )


def test_a_label_that_is_no_number_is_not_read_beside_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "q", "completion": "a", "label": float("nan")}), encoding="utf-8")
    assert prepared(file).notes == [f"{file}: columns not read: label (1)"]
