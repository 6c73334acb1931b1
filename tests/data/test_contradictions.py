"""Rows that say the opposite of earlier ones, and classes of held-out rows that are written otherwise."""

from pathlib import Path
from typing import Any

import pytest

from helpers.prepared import USER, answer, jsonl, prepared
from runner.core.errors import ConfigError
from runner.data.splits import number_classes

LIKED = {"prompt": "q", "completion": "a", "label": True}
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
SIDES = {"chosen": [USER, answer("bad")], "rejected": [USER, answer("good")]}
LABEL = "the content of an earlier row, and another label"
ONE = f"1 rows with {LABEL}"
SWAPPED = "the two answers of an earlier pair, swapped"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("classification", [{"text": "t", "label": "a"}, {"text": " t", "label": "b"}], ONE),
        ("classification", [{"text": "t", "label": 1}, {"text": "t", "label": "1.0"}], ONE),
        ("classification", [{"text": "t", "label": 1}, {"text": "t", "label": 1.0}], None),
        ("classification", [{"text": "t", "label": "a"}, {"text": "u", "label": "b"}], None),
        ("unpaired_preference", [LIKED, {**LIKED, "label": 0}], ONE),
        ("unpaired_preference", [LIKED, {**LIKED, "label": 0, "prompt": "r"}], None),
        ("unpaired_preference", [PAIR, SIDES], f"2 rows with {LABEL}"),
        ("preference", [PAIR, SIDES], f"1 rows with {SWAPPED}"),
        ("preference", [PAIR, {**PAIR, "rejected": "worse"}], None),
        ("completion", [PAIR, SIDES], None),
    ],
)
def test_rows_that_contradict_earlier_ones_are_counted(
    tmp_path: Path, kind: Any, rows: list[dict[str, Any]], said: str | None
) -> None:
    file = jsonl(tmp_path / "a.jsonl", *rows)
    found = [note for note in prepared(file, kind).notes if LABEL in note or SWAPPED in note]
    assert found == ([f"train: {said}, {file}:2 first"] if said else [])


def test_a_held_out_class_that_is_written_otherwise_is_named(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", {"text": "t", "label": 1}, {"text": "u", "label": 0})
    held_out = tmp_path / "b.csv"
    held_out.write_text("text,label\nv,1.0\n")
    with pytest.raises(ConfigError) as caught:
        number_classes(prepared(train, "classification", eval_path=str(held_out)))
    assert "classes that no training row has: 1.0" in str(caught.value)
    assert "'1.0' may be '1'; the classes are: 0, 1" in str(caught.value)
