"""Resume from a checkpoint of an earlier run, but only with the same config, rows and base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.core.yaml_reader import read_yaml
from runner.runs import checkpoint

# Keys that may differ from the run that wrote the checkpoint: where it is written, how it was started, and
# what it does when memory runs out.
_FREE = ("output_dir", "resume", "defaults", "on_oom")


@dataclass(frozen=True)
class Start:
    """Where a run begins: at a checkpoint, or (None) at its own beginning.

    ``notes`` say which damaged checkpoints were passed over.
    """

    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """The run's facts in the checkpoint's manifest; empty without a checkpoint."""
        return checkpoint.facts(self.checkpoint) if self.checkpoint else {}

    def step_in(self, run: Path) -> int:
        """The step at which the log of this run folder resumes; 0 where the checkpoint is another run's."""
        own = self.checkpoint is not None and self.checkpoint.parent.parent == run
        return checkpoint.step_of(self.checkpoint) if own else 0


def find_start(config: RunConfig) -> Start:
    """The checkpoint that ``resume`` names: a folder, a run's newest, or with ``auto`` ``output_dir``'s own.

    Damaged ones are passed over for the one before, and ``auto`` without any starts afresh. Raises
    ``ConfigError`` if the one that is named is damaged or there is none, or if the run that wrote it had
    another config, with every difference.
    """
    if config.resume is None:
        return Start()
    if config.resume == "auto":
        if config.output_dir is None:
            raise ConfigError(Issue("resume=auto", "needs output_dir, the run folder to resume"))
        run = Path(config.output_dir).expanduser()
        start = _newest(run)
    else:
        run, start = _named(config.resume)
    if start.checkpoint is not None:
        _check_whole(config.resume, start.checkpoint)
        _check_config(run, config)
    return start


def check_same(start: Start, facts: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if the rows or the base are not those that the checkpoint was trained with."""
    labels = {"data": "the training rows", "base": "the base model"}
    issues = [
        Issue(str(start.checkpoint), f"{what} are not those it was trained with", "start a new run")
        for key, what in labels.items()
        if start.checkpoint and start.facts.get(key) != facts[key]
    ]
    if issues:
        raise ConfigError(issues)


def _named(given: str) -> tuple[Path, Start]:
    """The run and the checkpoint of ``resume=PATH``."""
    path, where = Path(given).expanduser(), f"resume={given}"
    if checkpoint.step_of(path):
        reason = checkpoint.verify(path) if path.is_dir() else "is not there"
        if reason:
            before = _newest(path.parent.parent).checkpoint
            hint = f"the newest intact one is {before}" if before else "no other of that run is intact"
            raise ConfigError(Issue(where, f"the checkpoint {reason}", hint))
        return path.parent.parent, Start(path)
    start = _newest(path)
    if start.checkpoint is None:
        damaged = f": {'; '.join(start.notes)}" if start.notes else ""
        raise ConfigError(Issue(where, f"is neither a checkpoint nor a run folder with one{damaged}"))
    return path, start


def _newest(run: Path) -> Start:
    damaged: list[tuple[Path, str]] = []
    found = checkpoint.newest(run / "checkpoints", damaged)
    instead = f"{found.name} is used instead" if found else "training starts from the beginning"
    return Start(found, tuple(f"{path} {reason}: {instead}" for path, reason in damaged))


def _check_whole(resume: str, path: Path) -> None:
    if not (path / "optimizer.pt").is_file():
        message = f"{path} was saved without the optimizer's state (trainer.save_only_model)"
        raise ConfigError(
            Issue(f"resume={resume}", message, "it can be used, but training cannot resume from it")
        )


def _check_config(run: Path, config: RunConfig) -> None:
    """Raise ``ConfigError`` with every key that differs from the config beside the checkpoint."""
    if not (run / "config.yaml").is_file():
        return
    saved = read_yaml(run / "config.yaml")
    hint = "resume with the same value, or start a new run"
    issues = [
        Issue(key, f"was {before!r} in {run}, and is {after!r} now", hint)
        for key, before, after in _differences(saved, dataclasses.asdict(config))
    ]
    if issues:
        raise ConfigError(issues)


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after} - (set() if key else set(_FREE))):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key, before, after
