"""Prompt and answer become one conversation, also where the answer's column repeats the prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.prepared import USER, answer, jsonl, prepared, refusal, texts, trained

SYSTEM = {"role": "system", "content": "RULE"}
SECOND = {"role": "user", "content": "and?"}


def sides(*before: dict) -> dict[str, Any]:
    return {"chosen": [*before, answer("good")], "rejected": [*before, answer("bad")]}


def shown(*said: tuple[str, str]) -> str:
    turns = [f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in (*said, ("assistant", "good"))]
    return "\n".join(turns)


FIRST, RULE = ("user", "q"), ("system", "RULE")
JOINED: dict[str, tuple[dict[str, Any], str]] = {
    "the prompt again": ({"prompt": "q", **sides(USER)}, shown(FIRST)),
    "up to white space": ({"prompt": " q\n", **sides(USER)}, shown(("user", " q\n"))),
    "system prompt alone": ({"prompt": [SYSTEM], **sides(USER)}, shown(RULE, FIRST)),
    "system prompt and question": (
        {"prompt": [SYSTEM, USER], **sides(USER)},
        shown(RULE, FIRST),
    ),
    "system prompt in both": (
        {"prompt": [SYSTEM, USER], **sides(SYSTEM, USER)},
        shown(RULE, FIRST),
    ),
    "system prompt after": ({"prompt": "q", **sides(SYSTEM, USER)}, shown(RULE, FIRST)),
    "system column": ({"system": "RULE", "prompt": "q", **sides(USER)}, shown(RULE, FIRST)),
    "earlier turns": (
        {"prompt": [USER, answer("one")], **sides(SECOND)},
        shown(FIRST, ("assistant", "one"), ("user", "and?")),
    ),
    "earlier turns and the question": (
        {"prompt": [USER, answer("one"), SECOND], **sides(SECOND)},
        shown(FIRST, ("assistant", "one"), ("user", "and?")),
    ),
    "only the first question": (
        {"prompt": "q", **sides(USER, answer("one"), SECOND)},
        shown(FIRST, ("assistant", "one"), ("user", "and?")),
    ),
    "instruction": ({"instruction": "q", "input": "", **sides(USER)}, shown(FIRST)),
    "conversation": ({"conversations": [{"from": "human", "value": "q"}], **sides(USER)}, shown(FIRST)),
    "no prompt": (sides(USER), shown(FIRST)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", JOINED)
@pytest.mark.parametrize("kind", ["completion", "preference", "unpaired_preference"])
def test_a_prompt_stands_before_its_answers_once(tmp_path: Path, case: str, kind: Any) -> None:
    row, text = JOINED[case]
    data = prepared(jsonl(tmp_path / "a.jsonl", row), kind)
    assert texts(data.train)[0] == text.removesuffix("<|im_end|>") + "<|im_end|>"
    assert data.notes == []


GOLD = answer("gold")
LEFT_OUT = "a prompt that ends in another answer, which is left out"
UNREAD = "no messages in 'conversation', which is not read: both answers are whole conversations"
WHOLE: dict[str, tuple[dict[str, Any], str]] = {
    "another answer": ({"messages": [USER, GOLD], **sides(USER)}, LEFT_OUT),
    "after a system prompt": ({"messages": [SYSTEM, USER, GOLD], **sides(USER)}, LEFT_OUT),
    "the chosen one": ({"messages": [USER, answer("good")], **sides(USER)}, LEFT_OUT),
    "something else": ({"conversation": [{"input": "q", "output": "o"}], **sides(USER)}, UNREAD),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("kind", ["completion", "preference", "unpaired_preference"])
def test_whole_conversations_beside_one_with_an_answer_of_its_own(
    tmp_path: Path, case: str, kind: Any
) -> None:
    row, says = WHOLE[case]
    data = prepared(jsonl(tmp_path / "a.jsonl", row), kind)
    rule = (RULE,) if "system" in case else ()
    assert texts(data.train)[0] == shown(*rule, FIRST)
    assert [says in note for note in data.notes] == [True] * (kind != "completion" or "chosen" not in case)


def test_an_answer_behind_the_last_question_that_is_asked_again_is_left_out(tmp_path: Path) -> None:
    row = {"prompt": [USER, GOLD, SECOND, answer("old")], **sides(SECOND)}
    data = prepared(jsonl(tmp_path / "a.jsonl", row), "preference")
    assert texts(data.train)[0] == shown(FIRST, ("assistant", GOLD["content"]), ("user", "and?"))
    assert any(LEFT_OUT in note for note in data.notes)


@pytest.mark.parametrize("key", ["prompt", "messages"])
def test_a_prompt_that_ends_in_an_answer_is_said(tmp_path: Path, key: str) -> None:
    row = {key: [USER, GOLD], "chosen": "good", "rejected": "bad"}
    (note,) = prepared(jsonl(tmp_path / "a.jsonl", row), "preference").notes
    assert "1 rows with a prompt that ends in an answer, before the answer that is trained" in note


def test_an_alpaca_row_may_ask_in_its_input_alone(tmp_path: Path) -> None:
    row = {"instruction": "", "input": "q", "output": "good"}
    assert texts(prepared(jsonl(tmp_path / "a.jsonl", row)).train) == [shown(FIRST)]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "question": ({"prompt": "other", **sides(USER)}, "'chosen' begins with another question than the prompt"),
    "rejected": (
        {"prompt": "q", "chosen": "good", "rejected": [SECOND, answer()]},
        "'rejected' begins with another question than the prompt",
    ),
    "instruction": ({"instruction": "other", **sides(USER)}, "'chosen' begins with another question"),
    "system": (
        {"prompt": [{**SYSTEM, "content": "OTHER"}, USER], **sides(SYSTEM, USER)},
        "the prompt and 'chosen' have different system prompts",
    ),
    "later question": ({"prompt": [USER, answer(), SECOND], **sides(USER)}, "'chosen' begins with another"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_prompt_that_contradicts_is_refused(tmp_path: Path, case: str) -> None:
    row, says = CONTRADICTIONS[case]
    file = jsonl(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}, row)
    assert refusal(file, "preference").startswith(f"{file}:2: {says}")


def test_strings_that_repeat_the_prompt_lose_it_and_are_counted(tmp_path: Path) -> None:
    asked = "Human: hi\nAssistant:"
    file = jsonl(
        tmp_path / "a.jsonl", *[{"prompt": asked, "chosen": f"{asked} good", "rejected": f"{asked} bad"}]
    )
    data = prepared(file, "preference")
    assert trained(data.train) == ["good / bad"]
    assert data.notes == [
        f"{file}: 1 rows with a prompt that both answers repeat: cut off there, {file}:1 first"
    ]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi there", "Hi you"),  # too short to be sure
        ("what is it now", "what is it nowadays", "what is it nowhere"),  # within a word
        ("say it once more", "say it once more", "say it once more"),  # nothing is left
        ("say it once more", "say it once more: yes", "no"),
    ],
)
def test_answers_that_begin_alike_by_chance_are_kept(
    tmp_path: Path, prompt: str, chosen: str, rejected: str
) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    data = prepared(jsonl(tmp_path / "a.jsonl", row, {**row, "prompt": "x", "rejected": "z"}), "preference")
    assert trained(data.train)[-1] == f"{chosen} / z"
    assert chosen == rejected or trained(data.train)[0] == f"{chosen} / {rejected}"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": [USER], "completion": [USER, answer("good")]}, shown(FIRST)),
        ({"prompt": "q", "completion": [USER, answer("good")]}, shown(FIRST)),
        ({"prompt": None, "completion": [SYSTEM, USER, answer("good")]}, shown(RULE, FIRST)),
        ({"prompt": "q", "completion": answer("good")}, shown(FIRST)),
    ],
)
def test_a_completion_may_be_the_whole_conversation(tmp_path: Path, row: dict, text: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", row)
    assert texts(prepared(file).train) == [text]
    assert texts(prepared(jsonl(file, {**row, "label": True}), "unpaired_preference").train) == [text]
    said = refusal(jsonl(file, {"prompt": "other", "completion": [USER, answer()]}))
    assert "'completion' begins with another question" in said


def test_messages_as_json_text_are_read_and_counted(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": json.dumps([USER, answer("good")])}
    cut = '[{"role": "assistant", "content": "go'
    others = ({"prompt": "json", "completion": text} for text in ('[{"role": "admin"}]', cut))
    file = jsonl(tmp_path / "a.jsonl", row, *others)
    data = prepared(file)
    assert trained(data.train) == ["good", '[{"role": "admin"}]', cut]
    said = "1 rows with messages as JSON text in 'completion', which are read as messages"
    begins = "1 rows with a text that begins as messages in JSON do, and is none"
    assert data.notes == [f"{file}: {begins}, {file}:3 first", f"{file}: {said}, {file}:1 first"]


def test_feedback_on_a_conversation_is_on_its_last_answer(tmp_path: Path) -> None:
    turns = [USER, answer("one"), SECOND, answer("two")]
    rows = [{"messages": turns, "label": False}, {"conversations": turns[:2], "label": "true"}]
    data = prepared(jsonl(tmp_path / "a.jsonl", *rows), "unpaired_preference")
    assert trained(data.train) == ["two", "one"]
    assert [row.label for row in data.train.rows] == [False, True]
    said = refusal(jsonl(tmp_path / "a.jsonl", {"completion": "x", "label": True}), "unpaired_preference")
    assert "a.jsonl:1: has no 'prompt'" in said
