"""Go on from a checkpoint of an earlier run, but only with the config that made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from runner.errors import Problem, Refused
from runner.settings import RunConfig

# Keys that may differ from the run that wrote the checkpoint: where it is written, and how it was started.
_FREE = ("output_dir", "resume", "defaults")


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint that ``resume`` names: a folder, a run's newest, or with ``auto`` ``output_dir``'s own.

    ``auto`` without a checkpoint starts afresh (None). Raises ``Refused`` if there is none, or if the run
    that wrote it had another config, with every difference.
    """
    if config.resume is None:
        return None
    if config.resume == "auto":
        if config.output_dir is None:
            raise Refused(Problem("resume=auto", "needs output_dir, the run folder to go on in"))
        run = Path(config.output_dir).expanduser()
        checkpoint = _newest(run)
    else:
        given = Path(config.resume).expanduser()
        checkpoint = given if (given / "trainer_state.json").is_file() else _newest(given)
        if checkpoint is None:
            raise Refused(
                Problem(f"resume={config.resume}", "is no checkpoint and no run folder that holds one")
            )
        run = checkpoint.parent.parent
    if checkpoint is not None and (run / "config.yaml").is_file():
        saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        problems = [
            Problem(
                key,
                f"was {before!r} in {run}, and is {after!r} now",
                "go on with the same, or start a new run",
            )
            for key, before, after in _differences(saved, dataclasses.asdict(config))
        ]
        if problems:
            raise Refused(problems)
    return checkpoint


def _newest(run: Path) -> Path | None:
    return max(filter(step_of, (run / "checkpoints").glob("checkpoint-*")), key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step after which ``checkpoint-N`` was written; 0 for what is no such folder."""
    number = checkpoint.name.partition("-")[2] if checkpoint else ""
    return int(number) if number.isdigit() else 0


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after} - (set() if key else set(_FREE))):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key, before, after
