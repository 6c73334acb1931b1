"""Kills at chosen places: a named function of the product ends its process when it is called."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY, Run
from helpers.rows import ANSWERS
from helpers.starts import start
from runner.__main__ import main


@dataclass(frozen=True)
class Point:
    """The n-th ``call`` of ``MODULE:NAME[.NAME]``: before it begins, or ``after`` it has returned."""

    place: str
    call: int = 1
    after: bool = False

    def __str__(self) -> str:
        module, _, name = self.place.partition(":")
        return f"{'after' if self.after else 'in'}-{module.rpartition('.')[2]}.{name}-{self.call}"


def strike(point: Point, action: Callable[[], Any], patch: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Let ``action`` be called at a point; ``patch`` sets the attribute (``monkeypatch.setattr``)."""
    module, _, names = point.place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for each in outer:
        owner = getattr(owner, each)
    before, calls = getattr(owner, name), [0]

    @functools.wraps(before)
    def struck(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        now = calls[0] == point.call
        if now and not point.after:
            action()
        result = before(*args, **kwargs)
        if now and point.after:
            action()
        return result

    patch(owner, name, struck)


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def command(words: Iterable[str], point: Point | None = None) -> int:
    """Run a command line, in a process of its own, which is killed at ``point``."""
    if point is not None:
        strike(point, die)
    return main(list(words))


def call(target: Callable[..., Any], arguments: tuple[Any, ...], point: Point | None = None) -> int:
    """The same for a function."""
    if point is not None:
        strike(point, die)
    target(*arguments)
    return 0


# The phases of a run that trains, in their order; of each the places where a kill can leave something behind.
PHASES = {
    "folder": [Point("runner.core.atomic:Path.replace", 1), Point("runner.core.atomic:Path.replace", 2)],
    "prepare": [Point("recipes.train:prepare"), Point("recipes.train:prepare", after=True)],
    "load": [Point("recipes.train:load_trainable"), Point("recipes.train:load_trainable", after=True)],
    "score before": [Point("runner.evaluation.generate:HeldOutGenerator.answer")],
    "train": [
        Point("runner.training.trainer:GuardedTrainer.training_step", 3),
        Point("runner.training.trainer:GuardedTrainer.begin", after=True),
        Point("runner.training.trainer:GuardedTrainer.log", 2, after=True),
        Point("runner.training.trainer:GuardedTrainer.evaluate", 1, after=True),
        Point("runner.training.trainer:GuardedTrainer.train", after=True),
    ],
    "checkpoint": [
        Point("runner.runs.checkpoint:_seal", 2),
        Point("runner.runs.checkpoint:_replace", 3),
        Point("runner.runs.checkpoint:_replace", 2, after=True),
        Point("runner.training.trainer:rotate_checkpoints", 4, after=True),
    ],
    "save": [
        Point("recipes.train:save_trained"),
        Point("runner.training.results:complete_adapter"),
        Point("recipes.train:save_trained", after=True),
    ],
    "score after": [
        Point("runner.evaluation.generate:HeldOutGenerator.answer", 2),
        Point("runner.training.results:model_card"),
    ],
    "report": [
        Point("recipes.train:conclude", after=True),
        Point("runner.runs.run_folder:RunFolder.finish"),
        Point("runner.reports.run_report:write_report"),
        Point("runner.reports.run_report:write_report", after=True),
    ],
}


SAVES = (
    "data.max_rows=10",
    "data.eval_max_rows=3",
    "trainer.per_device_train_batch_size=2",
    "trainer.per_device_eval_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.save_strategy=steps",
    "trainer.save_steps=1",
    "trainer.logging_steps=1",
    "lora.lora_dropout=0.1",
    "trainer.learning_rate=1e-2",
    "generation.samples=2",
)
SFT = (*TINY, *ANSWERS, *SAVES)


def log(folder: Path) -> str:
    return (folder / "out.log").read_text()[-3000:]


def killed(folder: Path, words: tuple[str, ...], point: Point) -> None:
    """Start a command that is killed at a point."""
    process = start(command, folder, words, point)
    process.join()
    assert process.exitcode == -signal.SIGKILL, log(folder)


def finished(folder: Path, words: tuple[str, ...]) -> None:
    """Run a command to its end."""
    process = start(command, folder, words)
    process.join()
    assert process.exitcode == 0, log(folder)


def weights(run: Path) -> dict[str, bytes]:
    """What a reader would take for a model: the files under the names that a merge ends with."""
    files = [*run.glob("model/*.safetensors"), *run.glob("*.gguf"), *run.glob("*/*.gguf")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if "/." not in str(file)}


TIMES = ("seconds", "_runtime", "_per_second", "total_flos")


def results(run: Path) -> dict[str, Any]:
    """All that a run must leave alike, however often it was killed."""
    told = Run(0, run)
    assert told.record["status"] == "completed"
    assert (run / "report.html").is_file()
    adapter = sorted(path for path in (run / "adapter").rglob("*") if path.name != "README.md")
    files = [*adapter, *(path for path in run.glob("*.jsonl") if path.name != "metrics.jsonl")]
    lines = [
        {key: value for key, value in line.items() if not key.endswith(TIMES)}
        for line in told.lines("metrics.jsonl")
    ]
    metrics = {
        key: value
        for key, value in told.record["metrics"].items()
        if not key.endswith((*TIMES, "_bytes")) and not key.startswith("pack_")
    }
    return {
        "files": {str(path.relative_to(run)): path.read_bytes() for path in files},
        "lines": lines,
        "metrics": metrics,
        "temporary": [str(path.relative_to(run)) for path in run.rglob(".*")],
    }


class Killed(BaseException):
    """What no handler of errors sees, as it would not see SIGKILL."""


def killed_at(place: str, *words: str, folder: str = "run", call: int = 1) -> None:
    """Run a command until a place is reached."""

    def end() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        strike(Point(place, call), end, patch.setattr)
        with pytest.raises(Killed):
            main([*words, f"output_dir={folder}"])
