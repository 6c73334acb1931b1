"""What the sweep is compared with TRL by: rows in a file, TRL's trainer on them, the speed of its steps."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def logged_steps(run: Path) -> list[float]:
    """Seconds from the begin of training to the end of each step, as a run folder holds them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"] for line in lines if "loss" in line]


def steady_step(ends: Sequence[float], warmup: int) -> float:
    """Seconds of the median step after the first ``warmup`` ones, from the times at which steps ended."""
    steps = [after - before for before, after in pairwise(ends)][max(warmup, 1) - 1 :]
    if not steps:
        raise ValueError(f"{len(ends)} logged steps leave none after {warmup} of warmup")
    return statistics.median(steps)


def compose(overrides: list[str]) -> Any:
    """The run config of overrides, as the command line makes it."""
    from recipes import OBJECTIVES
    from runner.cli import run_config

    (run,) = run_config.check(run_config.parse(overrides, OBJECTIVES)).configs
    return run


def trl_trainer(run: Any, output: Path, rows: Path, held_out: Path | None = None) -> tuple[Any, list[float]]:
    """TRL's trainer with the settings of a run config, on a file of rows as its documentation has them.

    Returns the trainer and the list that gets the seconds at which each step ended.
    """
    from datasets import load_dataset

    from runner.benchmark.peers import peer_trainer

    files = {"train": str(rows)} | ({"held_out": str(held_out)} if held_out else {})
    data: Any = load_dataset("json", data_files=files)
    trainer = peer_trainer("trl", run, data["train"], output, data["held_out"] if held_out else None)
    clock, ends = _clock()
    trainer.add_callback(clock())
    return trainer, ends


def _clock() -> tuple[Callable[[], Any], list[float]]:
    """A callback that notes when each step ended, and the list in which it does."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:
                ends.append(time.monotonic() - self.began)

    return Clock, ends
