"""The run around a trainer: its log, its checkpoints' manifest, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runner.config.settings import ParallelSettings, RunConfig
from runner.core import console
from runner.core.progress import TrainingProgress
from runner.parallel.group import ALONE, Group
from runner.runs.run_folder import RunFolder
from runner.speed.pieces import PLAIN, Pieces, Without

# Called at every logged step with what the trainer logs, the step and the seconds since training began.
OnLog = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainerContext:
    """The run around a trainer.

    ``resume_facts`` go into the manifest of every checkpoint, and so does what ``lines`` returns, the number
    of lines of the log so far. ``on_shrink`` is called
    with a warning when memory runs out and batches shrink; without it, the error is raised.
    ``fresh_adapter`` says that the model without its adapter is the model as it was before training.
    ``pieces`` are those of ``speed`` that the config allows; ``without`` is told of each that turns out to be
    impossible. ``group`` are the processes that share the run, ``parallel`` says how. ``kept`` is what a
    trainer leaves to the next one, which goes on with a smaller batch.
    """

    on_log: OnLog
    resume_facts: dict[str, Any]
    on_shrink: Callable[[str], None] | None = None
    fresh_adapter: bool = True
    lines: Callable[[], int] = lambda: 0
    pieces: Pieces = PLAIN
    without: Without = lambda piece, reason: None
    group: Group = ALONE
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    kept: dict[str, Any] = field(default_factory=dict)


def run_context(
    config: RunConfig,
    folder: RunFolder,
    progress: TrainingProgress,
    resume_facts: dict[str, Any],
    fresh_adapter: bool,
    pieces: Pieces,
    group: Group,
) -> TrainerContext:
    """The context of a run of its own: steps go to its folder and its progress bar."""

    def on_log(entry: dict[str, Any]) -> None:
        progress.update(entry)
        folder.log({key: value for key, value in entry.items() if key != "max_steps"})

    def on_shrink(warning: str) -> None:
        folder.notes.append(f"{warning} (on_oom=shrink)")
        console.warn(folder.notes[-1])

    left = pieces

    def without(piece: str, reason: str) -> None:
        nonlocal left
        left = left.without(piece, reason)
        folder.record["speed"] = left.record()
        folder.warn([f"speed.{piece} off: {reason}"])

    shrinks = config.on_oom is not None
    return TrainerContext(
        on_log,
        resume_facts,
        on_shrink if shrinks else None,
        fresh_adapter,
        folder.lines,
        pieces,
        without,
        group,
        config.parallel,
    )
