"""A score of the user's own: ``evaluate.function=FILE.py:NAME``."""

import json
from pathlib import Path

import pytest

from helpers.command import TINY

TRAIN = (*TINY, "trainer.learning_rate=0.05", "trainer.save_strategy=no", "data.metric=null")

EVALUATE = ("recipe=evaluate", "generation.max_new_tokens=4")

ALONE = (*EVALUATE, *TINY[:2], "trainer.max_length=512", "data.max_rows=24", "data.eval_max_rows=4")

ROWS = [{"prompt": f"Say {word}.", "completion": word} for word in ("one", "two", "three", "four", "five")]


def found(run) -> dict:
    return json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_function_of_the_users_own_is_a_score_like_the_others(cli, parent, answers):
    parent(*TRAIN)
    write("rows.jsonl", ROWS)
    Path("own.py").write_text(
        "print('loaded')\ndef same_length(answer, expected):\n    return len(answer) == len(expected)\n"
    )
    answers(["one", "two", "five", "", ""], [row["completion"][::-1] for row in ROWS])
    words = ("data=file", "data.path=rows.jsonl", "evaluate.function=own.py:same_length")
    evaluation = found(cli(*EVALUATE, "adapter=start", *words))
    assert evaluation["models"]["base"]["same_length"]["value"] == pytest.approx(2 / 5)
    assert evaluation["models"]["start"]["same_length"]["value"] == 1
    assert evaluation["differences"]["start"]["same_length"]["value"] == pytest.approx(3 / 5)


def test_a_function_that_fails_on_a_row_fails_the_run(cli):
    Path("own.py").write_text("def bad(answer, expected):\n    raise ValueError('no such row')\n")
    run = cli(*ALONE, "evaluate.function=own.py:bad")
    assert run.code == 1
    assert run.record["status"] == "failed"
    assert "no such row" in run.record["error"]["message"]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'x'", "gives 'x', not a number"),
        ("return float('nan')", "gives nan, not a number"),
        ("return None", "gives None, not a number"),
        ("return [1]", "gives [1], not a number"),
        ("sys.exit(3)", "ends the process with 3"),
    ],
)
def test_a_function_that_gives_no_number_fails_the_run_by_its_name(cli, body, said):
    Path("own.py").write_text(f"import sys\ndef bad(answer, expected):\n    {body}\n")
    run = cli(*ALONE, "evaluate.function=own.py:bad")
    assert run.code == 1
    assert f"evaluate.function=own.py:bad {said}" in run.record["error"]["message"]
