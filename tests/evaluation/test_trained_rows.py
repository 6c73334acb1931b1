"""An evaluation says how many of its rows the adapter was trained on, by the record of the adapter's run."""

import json
from pathlib import Path

import pytest

from helpers.command import QUIET, TINY

ROWS = [{"prompt": f"Say {number}.", "completion": str(number)} for number in range(20)]
SHORT = (*TINY[:2], *QUIET, "trainer.max_steps=1", "data=file", "data.path=rows.jsonl", "data.eval_split=0.2")


@pytest.fixture
def evaluated(cli):
    """The notes of an evaluation of an adapter that was trained on 16 of 20 rows."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert cli(*SHORT, folder="start").code == 0

    def notes(*words: str, folder: str = "run") -> list[str]:
        chosen = ("recipe=evaluate", "adapter=start", "evaluate.metrics=[]", "generation.rows=0")
        found = cli(*chosen, *words, folder=folder).record["notes"]
        return [note for note in found if "was trained on" in note or "training rows too" in note]

    return notes


def test_rows_that_the_adapter_was_trained_on_are_counted(evaluated):
    said = "scored rows are rows that start was trained on: their scores say nothing of new ones; "
    said += "its run held out others: data.eval_split=0.2 data.split_seed=0"
    assert evaluated() == []
    assert evaluated("data.eval_split=0", folder="all") == [f"16 of 20 {said}"]
    (note,) = evaluated("data.split_seed=7", folder="other")
    assert note.endswith(f" of 4 {said}")


def test_nothing_is_said_of_rows_that_are_not_known_and_nothing_twice(evaluated):
    Path("new.jsonl").write_text(json.dumps({"prompt": "Say 20.", "completion": "20"}) + "\n")
    assert evaluated("data.path=new.jsonl", folder="new") == []
    Path("old.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + "\n")
    (note,) = evaluated("data.eval_path=old.jsonl", "data.eval_split=0", folder="file")
    assert "held-out rows are training rows too" in note
    with Path("rows.jsonl").open("a") as file:
        file.write("\n")
    assert evaluated("data.split_seed=7", folder="changed") == []
