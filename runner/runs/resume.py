"""Resume from a checkpoint of an earlier run, but only with the same config, rows and base model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config.recipes.chain_rules import stage_words
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.core.yaml_reader import read_yaml
from runner.runs import checkpoint
from runner.runs.earlier import Earlier
from runner.runs.run_folder import METRICS, is_run, read_log, result_digests

# Keys that may differ from the run that wrote the checkpoint: where it is written, how it was started, what
# it does when memory runs out, how many processes share its steps, which stay what they are, and what only a
# sweep reads.
_FREE = ("output_dir", "resume", "defaults", "on_oom", "parallel", "sweep")


@dataclass(frozen=True)
class Start:
    """Where a run begins: at a checkpoint, or (None) at its own beginning.

    ``notes`` say which checkpoints were passed over, and why.
    """

    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """The run's facts in the checkpoint's manifest; empty without a checkpoint."""
        return checkpoint.facts(self.checkpoint) if self.checkpoint else {}

    def step_in(self, run: Path) -> int:
        """The step at which the log of this run folder resumes; 0 where the checkpoint is another run's."""
        return checkpoint.step_of(self.checkpoint) if self._is_own(run) else 0

    def lines_in(self, run: Path) -> int | None:
        """The number of lines that the log of this run folder keeps; None where that is not known."""
        return self.facts.get("lines") if self._is_own(run) else 0

    def _is_own(self, run: Path) -> bool:
        return self.checkpoint is not None and self.checkpoint.parent.parent == run


def check_resume(config: RunConfig) -> None:
    """Raise ``ConfigError`` for what is wrong with ``resume`` before the run has a folder."""
    if config.resume not in (None, "auto"):
        find_start(config)
    elif config.resume == "auto" and config.output_dir is None:
        raise ConfigError(Issue("resume=auto", "needs output_dir, the run folder to resume"))


def find_start(config: RunConfig) -> Start:
    """The checkpoint that ``resume`` names: a folder, a run's newest, or with ``auto`` ``output_dir``'s own.

    Those that cannot be resumed are passed over for the one before, and ``auto`` without any starts afresh.
    Raises ``ConfigError`` if the one that is named cannot be resumed or there is none, if a record beside it
    is missing or damaged, or if the run that wrote it had another config, with every difference.
    """
    if config.resume is None:
        return Start()
    best = bool(config.trainer.get("load_best_model_at_end"))
    if config.resume == "auto":
        run = _own_folder(config)
        if not is_run(run):
            return Start()
        read_record(run)
        start = _newest(run, best)
        _check_log(run, start)
    else:
        run, start = _named(config.resume, best)
    if start.checkpoint is not None:
        _check_config(run, config)
    if config.recipe == "chain":
        _check_stages(run, config)
    return start


def find_completed(config: RunConfig) -> dict[str, Any] | None:
    """The record of the completed run that ``resume=auto`` would start again; None where work is left.

    None too when its result is gone, which is made again then. Raises ``ConfigError`` when the config has
    changed since, or the result is not the one that was recorded.
    """
    if config.resume != "auto":
        return None
    run = _own_folder(config)
    record = read_record(run) if is_run(run) else {}
    if record.get("status") != "completed":
        return None
    _check_config(run, config)
    recorded, found = record.get("digests") or {}, result_digests(run)
    adapter = found.get("adapter")
    if recorded.get("adapter") and adapter and adapter != recorded["adapter"]:
        message = "is not the one that run.json records"
        hint = "remove adapter/ and the run makes it again, or name a new output_dir"
        raise ConfigError(Issue(str(run / "adapter" / "adapter_model.safetensors"), message, hint))
    whole = bool(adapter) if recorded.get("adapter") else (run / "model").is_dir()
    return record if whole and (run / "samples.jsonl").is_file() else None


def read_record(run: Path) -> dict[str, Any]:
    """The ``run.json`` of a run folder. Raises ``ConfigError`` when it is missing or damaged."""
    file, record = run / "run.json", None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        reason = "" if isinstance(record, dict) else "holds no record"
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError, RecursionError) as error:
        reason = f"is damaged: {error}"
    if reason or not isinstance(record, dict):
        raise ConfigError(Issue(str(file), reason, _elsewhere(run)))
    return record


def _elsewhere(run: Path) -> str:
    last = checkpoint.newest(run / "checkpoints")
    there = f"resume={last} and a new output_dir go on from its checkpoint" if last else "start a new run"
    return f"put the file back, or {there}"


def _own_folder(config: RunConfig) -> Path:
    check_resume(config)
    return Path(str(config.output_dir)).expanduser()


def _check_log(run: Path, start: Start) -> None:
    """Raise ``ConfigError`` when the log is not what it was at the checkpoint."""
    file, expected = run / METRICS, start.facts.get("lines", 0)
    try:
        found = len(read_log(run))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"is damaged: {error}"
    else:
        if found >= expected:
            return
        reason = f"has {found} of {expected} lines" if file.is_file() else "is missing"
    raise ConfigError(Issue(str(file), reason, _elsewhere(run)))


def check_same(start: Start, facts: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if rows, base or adapters are not those that the checkpoint was trained with, or
    the held-out rows not those that its log has losses of."""
    what = {
        "data": "the training rows are not those it was trained with",
        "held_out": "the held-out rows are not those it was scored on before",
        "base": "the base model is not the one it was trained with",
        "parents": "the adapter it starts from is not the one it was trained with",
    }
    hint = "put back what it had, or start a new run: another output_dir, without resume"
    issues = [
        Issue(str(start.checkpoint), message, hint)
        for key, message in what.items()
        if start.checkpoint and key in start.facts and start.facts[key] != facts[key]
    ]
    if issues:
        raise ConfigError(issues)


def _named(given: str, best: bool) -> tuple[Path, Start]:
    """The run and the checkpoint of ``resume=PATH``."""
    path, where = Path(given).expanduser(), f"resume={given}"
    if checkpoint.step_of(path):
        reason = _unusable(path, best) if path.is_dir() else "is not there"
        if reason:
            before = _newest(path.parent.parent, best).checkpoint
            hint = f"the newest that can be is {before}" if before else "no other of that run can be resumed"
            raise ConfigError(Issue(where, f"the checkpoint {reason}", hint))
        return path.parent.parent, Start(path)
    start = _newest(path, best)
    if start.checkpoint is None:
        damaged = f": {'; '.join(start.notes)}" if start.notes else ""
        raise ConfigError(Issue(where, f"is neither a checkpoint nor a run folder with one{damaged}"))
    return path, start


def _newest(run: Path, best: bool) -> Start:
    damaged: list[tuple[Path, str]] = []
    found = None
    for path in checkpoint.all_of(run / "checkpoints"):
        if (reason := _unusable(path, best)) is None:
            found = path
            break
        damaged.append((path, reason))
    instead = f"{found.name} is used instead" if found else "training starts from the beginning"
    return Start(found, tuple(f"{path} {reason}: {instead}" for path, reason in damaged))


def _unusable(path: Path, best: bool) -> str | None:
    """Why training cannot resume from a checkpoint; None when it can.

    One without the optimizer's state is enough where no step follows. With ``best`` the model of the best
    checkpoint is loaded at the end, which must be there.
    """
    if reason := checkpoint.verify(path):
        return reason
    ended = (checkpoint.facts(path).get("due") or {}).get("stopped")
    if not (path / "optimizer.pt").is_file() and not ended:
        return "was saved without the optimizer's state (trainer.save_only_model)"
    if (
        best
        and (other := checkpoint.best_of(path))
        and other != path
        and (reason := checkpoint.verify(other))
    ):
        return f"names {other.name} as the best, which {reason}"
    return None


def _saved_config(run: Path) -> dict[str, Any]:
    """The config of a run folder. Raises ``ConfigError`` when it is missing or damaged."""
    file, saved, reason = run / "config.yaml", None, ""
    if not file.exists():
        reason = "is missing: what was run in this folder is not known"
    try:
        saved = read_yaml(file) if not reason else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = f"is damaged: {' '.join(str(error).split())}"
    if not reason and not isinstance(saved, dict):
        reason = "is damaged: it holds no config"
    if reason or not isinstance(saved, dict):
        raise ConfigError(Issue(str(file), reason, "put the file back, or start a new run"))
    return saved


def _check_config(run: Path, config: RunConfig) -> None:
    """Raise ``ConfigError`` with every key that differs from the config beside the checkpoint."""
    saved = _saved_config(run)
    hint = "resume with the same value, or start a new run"
    issues = [
        Issue(key, f"was {before!r} in {run}, and is {after!r} now", hint)
        for key, before, after in _differences(saved, dataclasses.asdict(config))
    ]
    if issues:
        raise ConfigError(issues)


def _check_stages(run: Path, config: RunConfig) -> None:
    """Raise ``ConfigError`` for each stage of a chain that has completed with other words than it has now."""
    before = stage_words(_saved_config(run).get("stages") or {})
    issues = []
    for name, words in stage_words(config.stages or {}).items():
        stage, had = run / name, before.get(name) or []
        if is_run(stage) and read_record(stage).get("status") == "completed" and had != words:
            gone, new = (sorted({*some} - {*others}) for some, others in ((had, words), (words, had)))
            message = f"has completed with {' '.join(gone) or 'less'}, and has {' '.join(new) or 'less'} now"
            hint = f"name a new output_dir, or remove {stage} to run it again"
            issues.append(Issue(f"stages.{name}", message, hint))
    if issues:
        raise ConfigError(issues)


def repeated(run: Path, config: RunConfig) -> Earlier | None:
    """The record of a run folder whose config is this one; None without one that can be read."""
    try:
        record = read_record(run)
        _check_config(run, config)
    except ConfigError:
        return None
    return Earlier(run, record)


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after} - (set() if key else set(_FREE))):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key, before, after
