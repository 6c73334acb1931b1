"""What a sweep folder holds, read at any time: half done, with failed cells, with files that are missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from runner.core.paths import SWEEP_FILE
from runner.core.yaml_reader import read_yaml
from runner.reports.number_format import format_value, to_number
from runner.rules.scale import adapter_scale, scale_summary

# In the order in which cells without a result are shown, and all that a cell can be.
STATUSES = ("completed", "running", "dropped", "diverged", "failed", "preempted", "waiting")
_ENDED = ("completed", "dropped", "diverged", "failed", "preempted")
_LOST = "{} says sweep.json, but run.json is missing or cannot be read"


@dataclass(frozen=True)
class CellResult:
    """One cell of a sweep: what ``sweep.json`` and its own run folder say, the latter winning.

    ``values`` are those of the axes, as typed. ``record`` is its run.json, empty where there is none.
    """

    name: str
    group: str
    folder: Path
    status: str
    values: dict[str, str]
    record: dict[str, Any] = field(repr=False)
    recorded_reason: str = ""  # in sweep.json
    other_code: bool = False  # finished by an earlier version of the code, and kept

    @property
    def metrics(self) -> dict[str, Any]:
        """``metrics`` of run.json."""
        return mapping(self.record.get("metrics"))

    @property
    def error(self) -> dict[str, Any]:
        """``error`` of run.json (type, message, traceback), empty without one."""
        error = self.record.get("error")
        return {"message": str(error)} if error and not isinstance(error, dict) else mapping(error)

    def metric(self, name: str) -> float:
        """A number of ``metrics``; NaN when it is missing or none."""
        return to_number(self.metrics.get(name))

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that can be read."""
        return read_lines(self.folder / "metrics.jsonl")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.yaml, empty when that cannot be read."""
        try:
            return mapping(read_yaml(self.folder / "config.yaml"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}

    @property
    def last_step(self) -> int | None:
        """The last step that it logged."""
        steps = [step for step in (to_number(line.get("step")) for line in self.lines) if math.isfinite(step)]
        return int(max(steps)) if steps else None

    @property
    def scale(self) -> float | None:
        """What multiplies the adapter's term; None where it is no LoRA."""
        return adapter_scale(mapping(self.config.get("lora")))

    @property
    def reason(self) -> str:
        """When and why it has no result; empty for a completed cell, and for one that runs or waits."""
        if self.status == "completed":
            return ""
        if self.status == "dropped" and (dropped := mapping(self.record.get("dropped"))):
            return _dropped(dropped) + _standing(dropped)
        if self.status not in _ENDED:
            return self.recorded_reason
        message = (str(self.error.get("message") or "").strip().splitlines() or [""])[0]
        if self.status == "preempted" and message:  # which says the step itself
            return message
        parts = (str(self.error.get("type") or ""), message)
        why = ": ".join(part for part in parts if part) or self.recorded_reason or "no reason is recorded"
        step = self.last_step
        return f"after step {step}: {why}" if step is not None else f"before the first step: {why}"

    @property
    def brief(self) -> str:
        """``reason`` without what differs between cells that were dropped together."""
        dropped = mapping(self.record.get("dropped"))
        return _dropped(dropped) if self.status == "dropped" and dropped else self.reason


@dataclass(frozen=True)
class Sweep:
    """A sweep folder. ``axes`` has every value that was typed or that a cell has, numbers by size."""

    folder: Path
    record: dict[str, Any]
    axes: dict[str, list[str]]
    cells: list[CellResult]
    notes: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        """The section ``sweep`` of its config."""
        return mapping(self.record.get("settings"))

    @property
    def deciding(self) -> dict[str, Any]:
        """The ``metric`` that ranks its cells, None where none does, ``ties`` and a ``note``; empty in old
        folders."""
        return mapping(self.record.get("deciding"))

    @property
    def tie_breakers(self) -> list[str]:
        """The metrics that order cells of equal value of the deciding one."""
        found = self.deciding.get("ties")
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def unranked(self) -> str:
        """Why no metric ranks its cells; empty where one does."""
        return "" if self.deciding.get("metric") else str(self.deciding.get("note") or "")

    def counts(self) -> dict[str, int]:
        """How many cells have each status, those with none left out."""
        found = {status: sum(cell.status == status for cell in self.cells) for status in STATUSES}
        return {status: count for status, count in found.items() if count}

    def job_of(self, cell: CellResult) -> str:
        """The job that trained a cell, empty where nothing says."""
        if name := mapping(cell.record.get("cell")).get("job"):
            return str(name)
        jobs = (job for job in self.jobs if cell.name in job["cells"])
        return str(next(jobs, {}).get("name", ""))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """The jobs: ``name``, ``cells`` (names) and ``alone``, a reason or None."""
        jobs = self.record.get("jobs")
        found = [mapping(job) for job in jobs] if isinstance(jobs, list) else []
        return [job | {"cells": _names(job.get("cells"))} for job in found if job.get("name")]


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep folder. What is missing or broken becomes a warning, never an error.

    Without ``sweep.json`` every subfolder with a run.json is a cell, and what differs between their overrides
    is an axis.
    """
    notes: list[str] = []
    record = _read_json(folder / SWEEP_FILE, notes)
    listed = record.get("cells")
    entries = [mapping(entry) for entry in listed] if isinstance(listed, list) else []
    if not entries:
        entries = _entries_of_folders(folder)
    cells = [_cell(folder, entry, notes) for entry in entries if isinstance(entry.get("name"), str)]
    notes += filter(None, [str(mapping(record.get("deciding")).get("note") or "")])
    notes += _same_weights(cells)
    notes += scale_summary((cell.name, mapping(cell.config.get("lora"))) for cell in cells)
    typed = {str(axis): _names(values) for axis, values in mapping(record.get("axes")).items()}
    axes = {
        axis: _sorted(dict.fromkeys([*values, *(c.values[axis] for c in cells if axis in c.values)]))
        for axis, values in (typed or _differing(cells)).items()
    }
    for cell in cells:
        for axis in [axis for axis in cell.values if axis not in axes]:
            del cell.values[axis]
    return Sweep(folder, record, axes, cells, notes)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; lines that cannot be read are left out."""
    rows = []
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.split("\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def mapping(value: Any) -> dict[str, Any]:
    """The value when it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def _cell(folder: Path, entry: Mapping[str, Any], notes: list[str]) -> CellResult:
    name = entry["name"]
    record = _read_json(folder / name / "run.json", notes) if (folder / name).is_dir() else {}
    ledger, own = str(entry.get("status") or "waiting"), record.get("status")
    reason = str(entry.get("reason") or "")
    if own in _ENDED:
        status = own
    elif ledger in ("completed", "dropped"):
        status, reason = "failed", _LOST.format(ledger)
    else:  # a child that was killed leaves a run.json that says running, whether or not it is started again
        status = ledger if ledger in STATUSES else "waiting"
    overrides = {str(key): str(value) for key, value in mapping(entry.get("overrides")).items()}
    group, other_code = str(entry.get("group") or name), entry.get("other_code") is True
    return CellResult(name, group, folder / name, status, overrides, record, reason, other_code)


def _dropped(dropped: Mapping[str, Any]) -> str:
    """When successive halving stopped a cell."""
    share = format_value(dropped.get("fraction"), "share").replace(" ", "")
    return f"at step {format_value(dropped.get('step'))} ({share} of the run)"


def _standing(dropped: Mapping[str, Any]) -> str:
    """How a dropped cell stood then."""
    parts = []
    if dropped.get("eval_loss") is not None:
        parts.append(f"held-out loss {format_value(dropped['eval_loss'])}")
    if dropped.get("rank") is not None:
        parts.append(f"number {dropped['rank']} of {dropped.get('of', '?')}")
    return ": " * bool(parts) + ", ".join(parts)


def _entries_of_folders(folder: Path) -> list[dict[str, Any]]:
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    entries = []
    for path in found:
        overrides = _read_json(path / "run.json", []).get("overrides")
        typed = [str(text).lstrip("+").split("=", 1) for text in overrides or [] if "=" in str(text)]
        entries.append({"name": path.name, "status": "running", "overrides": dict(typed)})
    return entries


def _differing(cells: list[CellResult]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for cell in cells for key in cell.values)
    own = ("seed", "output_dir")
    return {key: [] for key in keys if key not in own and len({cell.values.get(key) for cell in cells}) > 1}


def _sorted(values: Iterable[str]) -> list[str]:
    """Numbers by size; anything else in the order given."""
    values = list(values)
    return (
        sorted(values, key=to_number) if all(math.isfinite(to_number(value)) for value in values) else values
    )


def _names(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []


def _read_json(file: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return mapping(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{file.parent.name}/{file.name} could not be read: {error}")
        return {}


def _same_weights(cells: Iterable[CellResult]) -> list[str]:
    """A warning for every adapter that several cells ended with, naming the axes in which they differ."""
    by_digest: dict[str, list[CellResult]] = {}
    for cell in cells:
        if cell.status == "completed" and (digest := mapping(cell.record.get("digests")).get("adapter")):
            by_digest.setdefault(str(digest), []).append(cell)
    warnings = []
    for first, *others in by_digest.values():
        if others:
            values = [
                axis
                for axis, value in first.values.items()
                if any(c.values.get(axis) != value for c in others)
            ]
            names = f"{first.name} and {others[0].name}"
            names += f" and {len(others) - 1} more" if len(others) > 1 else ""
            cause = " and ".join(values) or "the seed"
            warnings.append(f"{names} ended with the same weights: {cause} made no difference")
    return warnings
