"""Row 34: code of others runs where the user says so, and at no other time.

Every piece of it leaves a marker file when it runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from helpers.command import TINY
from helpers.paths import ROOT

MARKER = "marker"
LEAVES = f"open({MARKER!r}, 'w').close()\n"
EVALUATE = ("recipe=evaluate", *TINY)
FUNCTION = "evaluate.function=theirs.py:score"


@pytest.fixture
def function(tmp_path: Path) -> Path:
    """A metric of a file that leaves a marker when the file is run."""
    file = tmp_path / "theirs.py"
    file.write_text(f"{LEAVES}def score(answer, expected):\n    return 1.0\n")
    return file


def test_function_of_a_file_runs_where_the_user_says_so(cli, function) -> None:
    run = cli(*EVALUATE, FUNCTION)
    assert run.code == 0
    assert run.record["metrics"]["score"] == 1.0
    assert Path(MARKER).exists()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words",
    [
        (*TINY, FUNCTION),  # a recipe that does not score with it
        ("recipe=inspect", "model=tiny", FUNCTION),
        (*EVALUATE, FUNCTION, "seed=-1"),
        (*EVALUATE, "evaluate.function=theirs.py:scores"),
        (*EVALUATE, FUNCTION, "--cfg", "job"),
    ],
    ids=["sft", "inspect", "an error", "no such function", "cfg"],
)
def test_function_of_a_file_is_not_run_before_it_scores(cli, function, words: tuple[str, ...]) -> None:
    cli(*words)
    assert not Path(MARKER).exists()


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The parts of lm-eval that are called, with one task; the tasks of each call are kept."""
    calls: list[list[str]] = []

    def simple_evaluate(**given) -> dict:
        calls.append(given["tasks"])
        return {"results": {"arc": {"acc,none": 0.5}}}

    parts = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": lambda: SimpleNamespace(all_tasks=["arc"])},
        "lm_eval.models.huggingface": {"HFLM": lambda **given: given},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        module.__dict__.update(contents, __spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.sampled(4)
@pytest.mark.parametrize("place", ["typed", "file"])
@pytest.mark.parametrize("task", ["theirs.yaml", "theirs.py", "./theirs", "arc/../theirs", "theirs:task"])
def test_tasks_are_those_of_the_installed_package(cli, capsys, lm_eval, task: str, place: str) -> None:
    """By name: no file of somebody's is one, wherever it is named."""
    (Path.cwd() / "theirs").mkdir()
    for file in ("theirs.py", "theirs/__init__.py"):
        Path(file).write_text(LEAVES)
    Path("theirs.yaml").write_text("task: theirs\nprocess_docs: !function theirs.score\n")
    words = [f"evaluate.tasks=['{task}']"]
    if place == "file":
        Path("own/experiment").mkdir(parents=True)
        text = f"# @package _global_\nevaluate: {{tasks: ['{task}']}}\n"
        Path("own/experiment/theirs.yaml").write_text(text)
        words = ["--config-dir", "own", "experiment=theirs"]
    assert cli(*EVALUATE, *words).code == 2
    assert f"lm-eval has no task {task!r}" in capsys.readouterr().err
    assert lm_eval == []
    assert not Path(MARKER).exists()


def test_tasks_run_in_an_evaluation_that_names_them_only(cli, lm_eval) -> None:
    assert cli(*EVALUATE, "evaluate.metrics=[]", folder="without").code == 0
    assert lm_eval == []
    assert cli(*EVALUATE, "evaluate.metrics=[]", "evaluate.tasks=[arc]", folder="with").code == 0
    assert lm_eval == [["arc"]]


@pytest.mark.parametrize("safe", [False, True])
def test_python_finds_modules_in_the_current_folder_first(tmp_path: Path, safe: bool) -> None:
    """Not with ``PYTHONSAFEPATH``, which the processes of a sweep inherit."""
    (tmp_path / "yaml.py").write_text(f"{LEAVES}raise SystemExit(9)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    environment |= {"PYTHONSAFEPATH": "1"} if safe else {}
    command = [sys.executable, "-m", "runner", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == (0 if safe else 9)
    assert (tmp_path / MARKER).exists() != safe
