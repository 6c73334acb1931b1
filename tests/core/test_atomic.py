"""JSON that every parser reads."""

import json
import math

import numpy as np
import pytest

from runner.core.atomic import json_line, json_text
from runner.runs.run_folder import RunFolder

NUMBERS = {"nan": math.nan, "deep": [{"inf": math.inf}, (-math.inf, np.float64("nan"))], "ä": 1.5}
PLAIN = {"nan": None, "deep": [{"inf": None}, [None, None]], "ä": 1.5}


def refuse(constant: str) -> None:
    raise ValueError(constant)


def strict(text: str) -> object:
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("write", [json_line, json_text])
def test_what_is_not_finite_is_null(write):
    assert strict(write(NUMBERS)) == PLAIN
    assert write(NUMBERS).endswith("\n")


def test_no_file_of_a_run_holds_a_bare_nan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path, "command", [], "", 0)
    folder.metrics |= {"eval_loss": math.nan, "bounds": [math.inf]}
    folder.log({"loss": math.nan, "more": {"of": math.nan}})
    folder.rewind(0, None)
    folder.write_lines("samples.jsonl", [{"score": math.nan}])
    folder.finish("completed")
    assert strict((tmp_path / "run.json").read_text())["metrics"] == {"eval_loss": None, "bounds": [None]}
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert None in strict((tmp_path / name).read_text()).values()
