"""Rows of every format that nobody thought of: refused by file and row, or counted and masked rightly.

Whatever is generated, the only errors are config errors; every row that was read is kept or has a reason; and
no text of a user, a system prompt or a tool has a label.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.prepared import prepared, trained
from runner.core.errors import ConfigError

# Letters that are in no answer: whatever text has one of them must not be trained on.
ASKED = "ABCDEFGH"
LIVELY = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\ud800\x00\u2028\ufffd\r\n"), max_size=8
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LIVELY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LIVELY, inner, max_size=3),
    max_leaves=6,
)
asked = st.text(ASKED, min_size=1, max_size=6)
said = st.text("abcdef \n", max_size=8)
words = st.text("abcdef", min_size=1, max_size=6)
flags = st.dictionaries(
    st.sampled_from(["weight", "loss", "train", "masked", "no_loss", "id", "reasoning", "loss_mask"]),
    st.sampled_from([None, True, False, 0, 1]),
    max_size=1,
)
calls = st.lists(st.fixed_dictionaries({"name": st.just("f"), "arguments": st.just({"a": None})}), max_size=2)


def message(role: str, content: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda text, more: {"role": role, "content": text, **more}, content, flags)


def part(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text | st.none()}), max_size=2)


TURNS = st.one_of(
    message("user", asked | part(asked)),
    message("system", asked),
    message("tool", asked | part(asked)),
    message("assistant", said | part(said)),
    st.builds(lambda made: {"role": "assistant", "content": None, "tool_calls": made}, calls),
)
conversations = st.lists(TURNS, min_size=1, max_size=5)


@st.composite
def answered(draw: st.DrawFn, *columns: str) -> dict[str, Any]:
    """A prompt and its answers, in any of the shapes that they come in; the question may be another."""
    question = draw(asked)
    ask = {"role": "user", "content": draw(st.sampled_from([question] * 9 + ["A"]))}
    before = draw(st.sampled_from([[], [{"role": "system", "content": "A"}]]))
    row: dict[str, Any] = {"prompt": draw(st.sampled_from([question, [*before, ask]]))}
    for column in columns:
        text = draw(words)
        answer = {"role": "assistant", "content": text, **draw(flags)}
        row[column] = draw(st.sampled_from([text, [answer], answer, [ask, answer]]))
        if not isinstance(row[column], str) and draw(st.integers(0, 9)) == 0:
            row[column] = json.dumps(row[column])
    return row


more = st.dictionaries(
    st.sampled_from(["system", "tools", "functions", "weight", "loss", "id", "images", "history"]),
    st.sampled_from([None, "", "ABC", "[]", 0, 1, [], ["A"], [["A", "a"]], {"A": 1}]),
    max_size=1,
)
KINDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "completion": st.one_of(
        st.fixed_dictionaries({"messages": conversations}),
        st.fixed_dictionaries({"messages": conversations.map(json.dumps)}),
        answered("completion"),
        st.fixed_dictionaries({"instruction": asked, "input": asked, "output": said}),
    ),
    "preference": answered("chosen", "rejected"),
    "unpaired_preference": st.one_of(
        st.builds(lambda row, liked: row | {"label": liked}, answered("completion"), st.booleans()),
        st.builds(
            lambda turns, liked: {"messages": turns, "label": liked},
            conversations,
            st.sampled_from([0, 1, "true", "no"]),
        ),
    ),
    "classification": st.fixed_dictionaries({"text": said, "label": st.sampled_from(["x", "X", 1, None])}),
}
DROPPED = {
    "answer not written by the template",
    "rejected by the template",
    "alike once rendered",
    "chosen equals rejected",
    "empty answer",
    "answer too short",
    "masked by its weight of 0",
    "all labels masked",
    "duplicate",
}


def check(rows: list[dict[str, Any]], kind: Any) -> bool:
    """Whether the rows were prepared; they are then counted and masked rightly. Other errors are raised."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        refused = None
        try:
            data = prepared(file, kind, deduplicate=True)
        except ConfigError as error:
            refused = error
    if refused is not None:
        places = (str(file), "data (train)", "data.path")
        assert all(issue.where.startswith(places) for issue in refused.issues)
        str(refused).encode()  # it can be printed
        return False
    counts = data.train.counts
    gone = sum(count for reason, count in counts.items() if reason in DROPPED)
    assert counts["read"] == len(rows)
    assert len(data.train.rows) == counts["read"] - gone + counts["unrolled into turns"]
    assert all(set(text).isdisjoint(ASKED) for text in trained(data.train))
    json.dumps(data.train.record()).encode()
    assert all(note.encode() for note in data.notes)
    return True


def checks(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,  # the same in every run of continuous integration
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        database=None,
    )


def examples_of(kind: str, number: int) -> None:
    """Check as many files of rows of a kind; some of them must have been trained on."""
    kept = []

    @checks(number)
    @given(st.lists(st.builds(dict.__or__, KINDS[kind], more), min_size=1, max_size=2))
    def rows_of_the_kind(rows: list[dict[str, Any]]) -> None:
        kept.append(check(rows, kind))

    rows_of_the_kind()
    assert sum(kept) > number / 20


def anything(number: int) -> None:
    """Check as many files of rows with the right columns that hold anything."""
    names = st.sampled_from(
        ["messages", "prompt", "completion", "text", "label", "chosen", "rejected", "tools"]
    )

    @checks(number)
    @given(
        st.lists(st.dictionaries(names | LIVELY, JSON | conversations, max_size=5), max_size=3),
        st.sampled_from(list(KINDS)),
    )
    def any_rows(rows: list[dict[str, Any]], kind: str) -> None:
        check(rows, kind)

    any_rows()


def test_rows_that_hold_anything() -> None:
    anything(60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_of_a_kind(kind: str) -> None:
    examples_of(kind, 80)


@pytest.mark.slow
def test_many_rows_that_hold_anything() -> None:
    anything(500)
