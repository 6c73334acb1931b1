"""What tests of answers share."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Write train.jsonl and rows.jsonl; one of the held-out answers has its reasoning among its words."""
    monkeypatch.chdir(tmp_path)
    held_out = [
        {"prompt": "Say one.", "completion": "one"},
        {"prompt": "Say two.", "completion": "<think>\nLess than three.\n</think>\n\ntwo"},
        {"prompt": "Say three.", "completion": "three"},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    Path("train.jsonl").write_text(json.dumps({"prompt": "Say ten.", "completion": "ten"}) + "\n")


@pytest.fixture
def answers(monkeypatch):
    """Let each of the models of a run answer what is given here, in turn."""
    from runner.evaluation import generate

    def say(*texts: list[str]) -> None:
        turns = iter(texts)
        monkeypatch.setattr(generate, "generate", lambda *args: next(turns))

    return say
