"""The tasks of lm-eval through the command line, with the parts of it that are called played by the test."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from helpers.command import TINY

ALONE = ("recipe=evaluate", *TINY)


@pytest.fixture
def lm_eval(monkeypatch):
    """The parts of lm-eval 0.4.13 that are called; each call is kept."""
    calls: list[dict] = []

    def simple_evaluate(**given) -> dict:
        calls.append(given)
        scores = {"alias": "arc", "sample_len": 9, "acc,none": 0.25 * len(calls), "acc_stderr,none": 0.01}
        scores |= {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.2}
        return {"results": {"arc": scores}}

    known = SimpleNamespace(all_tasks=["arc", "hellaswag"])
    parts = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": lambda: known},
        "lm_eval.models.huggingface": {"HFLM": lambda **given: given},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        module.__dict__.update(contents, __spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_tasks_are_handed_to_lm_eval_for_every_model(cli, parent, capsys, lm_eval):
    parent(*TINY)
    words = ("adapter=start", "evaluate.tasks=[arc]", "evaluate.metrics=[]")
    run = cli("recipe=evaluate", "generation.max_new_tokens=4", *words)
    assert json.loads((run.folder / "evaluation.json").read_text())["tasks"] == {
        "base": {
            "arc/acc": 0.25,
            "arc/exact_match,strict-match": 0.1,
            "arc/exact_match,flexible-extract": 0.2,
        },
        "start": {
            "arc/acc": 0.5,
            "arc/exact_match,strict-match": 0.1,
            "arc/exact_match,flexible-extract": 0.2,
        },
    }
    assert [call["tasks"] for call in lm_eval] == [["arc"], ["arc"]]
    wrapped = lm_eval[0]["model"]
    assert hasattr(wrapped["pretrained"], "generate")
    assert wrapped["tokenizer"].eos_token_id is not None
    assert "arc/acc" in capsys.readouterr().out


def test_an_unknown_task_is_refused(cli, capsys, lm_eval):
    assert cli(*ALONE, "evaluate.tasks=[arc,helaswag]").code == 2
    printed = capsys.readouterr().err
    assert "lm-eval has no task 'helaswag'" in printed
    assert "'hellaswag'" in printed
    assert lm_eval == []


def test_tasks_without_lm_eval_are_refused(cli, capsys, monkeypatch):
    monkeypatch.setattr("runner.evaluation.lm_eval_tasks.find_spec", lambda name: None)
    run = cli(*ALONE, "evaluate.tasks=[arc]", "evaluate.metrics=[blue]")
    assert run.code == 2
    assert not run.folder.exists()
    printed = capsys.readouterr().err
    assert "pip install lm-eval" in printed
    assert "2 config errors" in printed
