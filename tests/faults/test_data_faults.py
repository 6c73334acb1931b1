"""Rows that are not what they seem are refused by file and row, or counted and said: never just used."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.faulty_rows import ASKED, GOOD, TRAIN, answer, inspected, jsonl, refusal

PAIRS = [{"prompt": f"question {n}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(4)]


def chat(*messages: Any) -> bytes:
    """A good conversation, then these messages as the second row."""
    return jsonl({"messages": [ASKED, {"role": "assistant", "content": "so"}]}, {"messages": list(messages)})


def parquet(*rows: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


# Row of the suite and variant: the file, what is in it, and what must be named.
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "7 empty": ("a.jsonl", b"", "a.jsonl: holds no rows"),
    "7 blank lines": ("a.jsonl", b"\r\n \r\n", "a.jsonl: holds no rows"),
    "7 empty list": ("a.json", b"[]", "a.json: holds no rows"),
    "7 header only": ("a.csv", b"prompt,completion\n", "a.csv: holds no rows"),
    "7 empty parquet": ("a.parquet", b"", "a.parquet: cannot be read as Parquet"),
    "7 parquet without rows": ("a.parquet", parquet(GOOD[0])[:-20], "a.parquet: cannot be read as Parquet"),
    "8 cut line": ("a.jsonl", jsonl(*GOOD)[:-12], "a.jsonl:4: is not JSON"),
    "8 cut line after a mark and a blank": (
        "a.jsonl",
        b"\xef\xbb\xbf" + jsonl(GOOD[0], "", '{"prompt": "x", "compl').replace(b"\n", b"\r\n"),
        "a.jsonl:3: is not JSON",
    ),
    "8 cut list": ("a.json", json.dumps(GOOD, indent=1).encode()[:-9], "a.json:16: is not JSON"),
    "8 cut cell": ("a.csv", b'prompt,completion\na,b\nc,"d', "a.csv:3: is not CSV"),
    "8 cut row": ("a.csv", b"prompt,completion\na,b\nc\n", "a.csv:3: has 1 cells"),
    "8 line of two rows": ("a.jsonl", jsonl(GOOD[0], "{}{}"), "a.jsonl:2: is not JSON: Extra data"),
    "8 key twice": (
        "a.jsonl",
        jsonl(GOOD[0], '{"prompt": "a", "prompt": "b"}'),
        "a.jsonl:2: names 'prompt' twice",
    ),
    "8 key twice in a message": (
        "a.json",
        b'[{"messages": [{"role": "user", "content": "a", "content": "b"}]}]',
        "a.json, row 1: names 'content' twice",
    ),
    "8 column twice": (
        "a.csv",
        b"prompt,completion,prompt\na,b,c\n",
        "a.csv:1: the header names the column 'prompt'",
    ),
    "9 latin": (
        "a.jsonl",
        jsonl(GOOD[0]) + b'{"prompt": "caf\xe9"}\n',
        r"a.jsonl:2: byte 16 of the line is not UTF-8",
    ),
    "9 latin csv": (
        "a.csv",
        b"prompt,completion\na,b\ncaf\xe9,b\n",
        r"a.csv:3: byte 4 of the line is not UTF-8",
    ),
    "9 utf-16": (
        "a.jsonl",
        jsonl(*GOOD).decode().encode("utf-16"),
        "a.jsonl:1: byte 1 of the line is not UTF-8",
    ),
    "9 half a character": (
        "a.jsonl",
        jsonl(GOOD[0], r'{"prompt": "\ud83d", "completion": "b"}'),
        "a.jsonl:2: prompt",
    ),
    "10 field": ("a.jsonl", jsonl(GOOD[0], {"prompt": "x"}), "a.jsonl:2: has no 'completion'"),
    "10 misspelt": ("a.jsonl", jsonl(GOOD[0], {"prompt": "x", "completon": "y"}), "is it 'completon'?"),
    "10 all rows": ("a.jsonl", jsonl({"promt": "x", "completion": "y"}), "data.columns={promt: prompt}"),
    "10 number": (
        "a.jsonl",
        jsonl(GOOD[0], {"prompt": 1, "completion": "y"}),
        "a.jsonl:2: 'prompt' must be text, got int",
    ),
    "11 null": (
        "a.jsonl",
        jsonl(GOOD[0], {"prompt": "x", "completion": None}),
        "a.jsonl:2: has null in 'completion'",
    ),
    "11 NaN": (
        "a.jsonl",
        jsonl(GOOD[0], '{"prompt": "x", "completion": NaN}'),
        "a.jsonl:2: 'completion' must be text",
    ),
    "11 message": (
        "a.jsonl",
        chat(ASKED, answer(content=None)),
        "a.jsonl:2: messages[1] has no text content",
    ),
    "11 parquet": (
        "a.parquet",
        parquet(GOOD[0], {"prompt": "x", "completion": None}),
        "a.parquet, row 2: has null",
    ),
    "12 no messages": ("a.jsonl", chat(), "a.jsonl:2: messages must be a list of messages"),
    "12 no answer": ("a.jsonl", chat(ASKED), "a.jsonl:2: has no assistant message"),
    "12 text list": ("a.csv", b'messages\n"[]"\n', "a.csv, row 1: messages must be a list of messages"),
    "13 role": (
        "a.jsonl",
        chat(ASKED, answer(role="asistant")),
        "a.jsonl:2: messages[1] has the unknown role 'asistant'",
    ),
    "13 from": (
        "a.jsonl",
        jsonl({"conversations": [{"from": "humen", "value": "x"}]}),
        "a.jsonl:1: conversations[0] has the unknown role 'humen'",
    ),
    "13 no role": ("a.jsonl", chat({"rol": "user", "content": "x"}), "a.jsonl:2: messages[0] has no role"),
    "13 weight": (
        "a.jsonl",
        chat(ASKED, answer(weight="0")),
        "a.jsonl:2: messages[1] has the weight str '0'",
    ),
    "21 formats": ("a.jsonl", jsonl(GOOD[0], {"text": "x"}), "a.jsonl:2: is in the format 'text'"),
    "21 formats in a list": (
        "a.json",
        json.dumps([{"instruction": "x", "output": "y"}, GOOD[0]]).encode(),
        "a.json, row 2: is in the format 'prompt_completion', but the file began in 'alpaca'",
    ),
    "21 formats in a table": (
        "a.parquet",
        parquet({"text": "x", "prompt": None, "completion": None}, {**GOOD[0], "text": None}),
        "a.parquet, row 1: has null in 'prompt'",
    ),
}


# Held-out files go the same way: the first variant of each row shows it.
FIRST = {fault.split()[0]: fault for fault in reversed(BROKEN)}.values()


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    ("fault", "key"),
    [(fault, "data.path") for fault in BROKEN] + [(fault, "data.eval_path") for fault in FIRST],
)
def test_a_broken_file_is_refused_by_file_and_row(cli, capsys, made, fault, key):
    name, content, said = BROKEN[fault]
    made("good.jsonl", jsonl(*GOOD))
    files = {"data.path": "good.jsonl", key: made(name, content)}
    assert said in refusal(cli(*TRAIN, *(f"{k}={file}" for k, file in files.items())), capsys)


BROKEN_PAIRS: dict[str, tuple[bytes, str]] = {
    "7 empty": (b"", "a.jsonl: holds no rows"),
    "8 cut": (jsonl(*PAIRS)[:-12], "a.jsonl:4: is not JSON"),
    "9 latin": (jsonl(PAIRS[0]) + b'{"chosen": "\xe9"}\n', "a.jsonl:2: byte 13 of the line is not UTF-8"),
    "10 field": (jsonl(PAIRS[0], {"prompt": "x", "chosen": "y"}), "a.jsonl:2: has no 'rejected'"),
    "10 prompt": (
        jsonl(PAIRS[0], {"chosen": "x", "rejected": "y"}),
        "a.jsonl:2: has an answer but no prompt",
    ),
    "11 null": (jsonl(PAIRS[0], {**PAIRS[1], "rejected": None}), "a.jsonl:2: has null in 'rejected'"),
    "12 empty list": (
        jsonl(PAIRS[0], {**PAIRS[1], "chosen": []}),
        "a.jsonl:2: chosen must be a list of messages",
    ),
    "13 role": (
        jsonl({**PAIRS[1], "chosen": [answer(role="bott")]}),
        "a.jsonl:1: chosen[0] has the unknown role 'bott'",
    ),
    "14 empty": (jsonl(PAIRS[0], {**PAIRS[1], "chosen": " "}), "a.jsonl:2: 'chosen' is empty"),
    "14 equal": (jsonl({**PAIRS[1], "chosen": "x", "rejected": "x"}), "1 chosen equals rejected"),
    "15 prompt": (jsonl({**PAIRS[1], "prompt": "x" * 600}), "raise trainer.max_length"),
    "15 equal as far as they are read": (
        jsonl({**PAIRS[1], "chosen": "x" * 600 + "y", "rejected": "x" * 600 + "n"}),
        "1 cut to equal answers\n      raise trainer.max_length",
    ),
    "21 formats": (jsonl(PAIRS[0], GOOD[0]), "a.jsonl:2: has no 'chosen'"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("fault", BROKEN_PAIRS)
def test_broken_pairs_are_refused_by_file_and_row(cli, capsys, made, fault):
    content, said = BROKEN_PAIRS[fault]
    run = cli(*TRAIN, "recipe=dpo", f"data.path={made('a.jsonl', content)}")
    assert said in refusal(run, capsys)


def test_all_faults_of_both_files_are_named_together(cli, capsys, made):
    made("a.jsonl", jsonl(GOOD[0], {"prompt": "x"}, "", '{"prompt": "x"'))
    made("b.csv", b"prompt,completion\na\n")
    err = refusal(cli(*TRAIN, "data.path=a.jsonl", "data.eval_path=b.csv"), capsys)
    assert [
        place for place in ("a.jsonl:2", "a.jsonl:4", "b.csv:2", "3 config errors") if place not in err
    ] == []


# What leaves the row in, or drops it, but must be counted and said: the file, its count, and the note.
DOUBTFUL: dict[str, tuple[bytes, dict[str, int], str]] = {
    "10 misspelt optional column": (
        jsonl({"sytem": "Be kind.", **GOOD[0]}),
        {},
        "a.jsonl: columns not read: sytem (1); 'data.columns={sytem: system}' reads it",
    ),
    "12 empty system turn": (
        chat({"role": "system", "content": ""}, ASKED, answer()),
        {"an empty system message": 1},
        "train: 1 rows with an empty system message, a.jsonl:2 first",
    ),
    "12 empty question": (
        jsonl({"prompt": "", "completion": "x"}),
        {"an empty user message": 1},
        "train: 1 rows with an empty user message, a.jsonl:1 first",
    ),
    "14 empty answers": (
        jsonl(*GOOD, {"prompt": "x", "completion": ""}, {"prompt": "y", "completion": " \n"}),
        {"empty answer": 2},
        "train: 2 of 6 rows dropped: empty answer",
    ),
    "14 answers of which nothing can be seen": (
        jsonl(
            *GOOD,
            {"prompt": "x", "completion": "\u200b\ufeff"},
            {"prompt": "y", "completion": "\u202e\u00a0"},
        ),
        {"empty answer": 2},
        "train: 2 of 6 rows dropped: empty answer",
    ),
    "14 an earlier answer": (
        chat(ASKED, answer(content=""), ASKED, answer()),
        {"an empty assistant message": 1},
        "train: 1 rows with an empty assistant message, a.jsonl:2 first",
    ),
    "20 the same row again": (
        jsonl(*GOOD, GOOD[1]),
        {"repeated": 1},
        "train: 1 rows repeat earlier ones; data.deduplicate=true drops them",
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", DOUBTFUL)
def test_a_doubtful_row_is_counted_and_said(cli, made, fault):
    content, counts, note = DOUBTFUL[fault]
    record, _ = inspected(cli, f"data.path={made('a.jsonl', content)}")
    assert note in record["notes"]
    assert counts.items() <= record["data"]["train"]["counts"].items()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_20_held_out_rows_that_are_trained_on_are_named(cli, capsys, made, recipe):
    rows = GOOD if recipe == "sft" else PAIRS
    new = {**rows[0], "prompt": "something else"}
    made("a.jsonl", jsonl(*rows))
    made("b.jsonl", jsonl(new, rows[2], {**rows[1], "prompt": " question  1 "}))
    words = (f"recipe={recipe}", "data.path=a.jsonl")
    run = cli(*TRAIN, *words, "data.eval_path=b.jsonl")
    assert run.code == 0
    assert run.record["data"]["eval"]["counts"]["also in train"] == 2
    note = "2 of 3 held-out rows are training rows too: b.jsonl:2 is a.jsonl:3; b.jsonl:3 is a.jsonl:2"
    assert note in run.record["notes"]
    # a score on rows that were all trained on would look right and say nothing
    err = refusal(cli(*TRAIN, *words, "data.eval_path=a.jsonl", folder="same"), capsys)
    assert "data.eval_path: all 4 held-out rows are training rows too: a.jsonl:1 is a.jsonl:1" in err


def test_20_overlap_is_seen_across_formats_and_by_the_prompt(cli, made):
    made("a.jsonl", jsonl(*({"instruction": row["prompt"], "output": row["completion"]} for row in GOOD)))
    told = {"messages": [{**ASKED, "content": "question 1"}, answer(content="answer 1")]}
    made("b.jsonl", jsonl(told, {"messages": [{**ASKED, "content": "question 2"}, answer()]}))
    record, _ = inspected(cli, "data.path=a.jsonl", "data.eval_path=b.jsonl")
    assert record["notes"] == [
        "1 of 2 held-out rows are training rows too: b.jsonl:1 is a.jsonl:2",
        "1 of 2 held-out rows have the prompt of a training row, b.jsonl:2 first",
    ]


def test_columns_that_cannot_be_meant_are_refused(cli, capsys, made):
    made("a.jsonl", jsonl({"q": "x", "sys": "y", "completion": "z"}))
    for mapping, said in (
        ("{q: prompt, sys: sytem}", "'system'"),
        ("{q: prompt, sys: prompt}", "two columns"),
    ):
        err = refusal(cli(*TRAIN, "data.path=a.jsonl", f"data.columns={mapping}"), capsys)
        assert said in err
