"""``sweep.json``: which cells a sweep has, what became of each, and which are still to be run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.settings import SweepSettings
from runner.core.atomic import json_text, write_atomically
from runner.core.errors import ExitCode, Issue
from runner.core.metric_names import in_record
from runner.core.paths import SWEEP_FILE
from runner.core.timestamp import utc_now
from runner.runs.run_folder import REPORT
from runner.sweep.cells import Cell, code_of

DONE = ("completed", "dropped")
ENDED = (*DONE, "diverged", "failed", "preempted")
INTERRUPTED = "the sweep was interrupted"
MOST_FAILURES = 2  # of a cell that runs alone; after these it is not started again by itself
_FAULTS = ("CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_")
_NO_MEMORY = ("out of memory", "ALLOC_FAILED")
_MIXED = "mixed"  # in place of a digest: begun by one code and resumed by another

# The worst last. Preempted cells are resumed when the command is given again, so that they decide.
_CODES = {
    "completed": ExitCode.COMPLETED,
    "dropped": ExitCode.COMPLETED,
    "diverged": ExitCode.DIVERGED,
    "failed": ExitCode.FAILED,
    "preempted": ExitCode.PREEMPTED,
    "running": ExitCode.PREEMPTED,
    "waiting": ExitCode.PREEMPTED,
}
_STATUSES = {ExitCode.COMPLETED: "completed", ExitCode.PREEMPTED: "preempted"}  # of a sweep; else it failed


class Ledger:
    """The record of a sweep, written atomically after every change.

    ``cells`` are the entries of sweep.json by name. An entry also counts the ``failures`` of a cell that ran
    alone, says with ``failed_packed`` whether it failed in a pack, and keeps the ``code`` that computed it
    (``code_of``); ``other_code`` marks a cell that was not computed by the present code alone. ``device`` is
    where it ran last, and ``retried`` how its process ended before it was started once more. ``changed`` are
    the cells whose folders an earlier start has left and this one cannot use.
    """

    def __init__(self, folder: Path, command: str, settings: SweepSettings) -> None:
        self.folder, self._redo = folder, settings.redo == "code"
        self._began = time.monotonic()
        old = _read(folder / SWEEP_FILE)
        self._seconds = float(old.get("seconds") or 0.0)
        self.changed: set[str] = set()
        self.cells: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in old.get("cells", [])}
        self.record: dict[str, Any] = {
            "status": "running",
            "command": command,
            "started": old.get("started") or utc_now(),
            "ended": None,
            "seconds": self._seconds,
            "axes": old.get("axes", {}),
            "settings": dataclasses.asdict(settings),
            "jobs": old.get("jobs", []),
            "cells": [],
            "best": old.get("best"),
        }
        for entry in self.cells.values():
            self._take(entry)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """The jobs of this start and of earlier ones: ``name``, ``cells`` (names), ``alone``."""
        return self.record["jobs"]

    def stale(self, cells: Iterable[Cell]) -> list[Issue]:
        """An issue for each cell that has the result of another config, other rows or another adapter."""
        found = [
            cell for cell in cells if self._status(cell.name) in DONE and self._key(cell.name) != cell.key
        ]
        message = "has a result of another config, other rows, another adapter or another base model"
        hint = f"name a new output_dir, or remove {self.folder}/CELL to run it again"
        return [Issue(cell.name, message, hint) for cell in found]

    def add(self, cells: Sequence[Cell], axes: Mapping[str, Sequence[str]]) -> None:
        """Enter cells; what is known of those with the same key is kept.

        What other code has computed is kept and marked if it is done, with ``sweep.redo=code`` run again; a
        cell that failed or diverged under other code is tried again, as it may not any more.
        """
        for name, values in axes.items():
            known = self.record["axes"].get(name, [])
            self.record["axes"][name] = list(dict.fromkeys([*known, *values]))
        for cell in cells:
            old = self.cells.get(cell.name) or self._from_folder(cell.name)
            kept = old if old.get("key") == cell.key and (self.folder / cell.name).is_dir() else {}
            other_code = bool(kept) and _by_other(kept, code_of(cell.config))
            if other_code and (self._redo or kept["status"] in ("failed", "diverged")):
                kept, other_code = {}, False
            if old and not kept and (old["status"], old.get("key")) != ("waiting", cell.key):
                self.changed.add(cell.name)
            seed = {} if "seed" in axes else {"seed"}
            self.cells[cell.name] = {
                "name": cell.name,
                "key": cell.key,
                "overrides": {key: value for key, value in cell.values.items() if key not in seed},
                "group": cell.group,
                "status": self._status(cell.name) if kept or not old else "waiting",
                "reason": kept.get("reason"),
                "failures": kept.get("failures", 0),
                "failed_packed": kept.get("failed_packed", False),
                "code": kept.get("code"),
                "other_code": other_code,
                "device": kept.get("device"),
                "retried": kept.get("retried"),
            }

    def begin(self, cells: Iterable[Cell], resumed: bool, device: str) -> None:
        """Mark cells as running on a device and the present code; those ``resumed`` may have been begun by
        another."""
        for cell in cells:
            entry, code = self.cells[cell.name], code_of(cell.config)
            mixed = resumed and entry["code"] not in (None, code)
            entry |= {"status": "running", "reason": None, "code": _MIXED if mixed else code}
            entry |= {"other_code": mixed, "device": device}

    def status(self, name: str) -> str:
        """The status of a cell."""
        return self.cells[name]["status"]

    def given_up(self, name: str) -> str | None:
        """Why a cell without a result is not run again."""
        entry = self.cells[name]
        if entry["status"] == "diverged":
            return "it diverged, and would again"
        if entry["failures"] >= MOST_FAILURES:
            return f"it failed {entry['failures']} times alone; remove its folder to try it once more"
        return None

    def mark(self, names: Iterable[str], status: str, reason: str | None = None) -> None:
        """Set the status of cells."""
        for name in names:
            self.cells[name] |= {"status": status, "reason": reason}

    def lost(self, names: Iterable[str], killed: bool) -> list[str]:
        """Of a job whose process has ended, the cells for which another device may do better.

        Those that it was in the middle of, or could not finish for a fault of its device, and with them those
        that it had not begun; none if it has recorded how each one ended. ``killed`` says that it was.
        """
        records = {name: _read(self.folder / name / "run.json") for name in names}
        faulty = [name for name, record in records.items() if _is_fault(record)]
        unended = [name for name, record in records.items() if _status_of(record) not in ENDED]
        died = killed or faulty or any(_status_of(records[name]) == "running" for name in unended)
        return [name for name in records if name in faulty or name in unended] if died else []

    def retry(self, names: Iterable[str], reason: str) -> None:
        """Let cells wait for another process, after ``reason`` ended the first."""
        for name in names:
            self.cells[name] |= {"status": "waiting", "reason": None, "retried": reason}

    def end_job(self, names: Sequence[str], reason: str, alone: bool, preempted: bool) -> None:
        """Take over from the run folders how the cells of a job ended.

        One that has recorded no end failed for ``reason``, or was ``preempted``.
        """
        for name in names:
            entry = self.cells[name]
            self._take(entry)
            if entry["status"] not in ENDED:
                entry |= {"status": "preempted" if preempted else "failed", "reason": reason}
            if entry["status"] == "failed":
                entry["failures"] += alone
                entry["failed_packed"] = entry["failed_packed"] or not alone

    def write(self) -> None:
        """Write sweep.json."""
        self.record["seconds"] = round(self._seconds + time.monotonic() - self._began, 3)
        self.record["cells"] = list(self.cells.values())
        write_atomically(self.folder / SWEEP_FILE, json_text(self.record))

    def finish(self) -> ExitCode:
        """Write the final status and return the exit code: that of the worst cell."""
        statuses = {entry["status"] for entry in self.cells.values()}
        codes = [code for status, code in _CODES.items() if status in statuses]
        worst = codes[-1] if codes else ExitCode.FAILED
        self.record |= {"status": _STATUSES.get(worst, "failed"), "ended": utc_now()}
        self.write()
        return worst

    def metric(self, name: str, metric: str) -> float | None:
        """A metric of a cell; of a cell that halving dropped, its held-out loss at that step."""
        record = _read(self.folder / name / "run.json")
        metrics = record.get("metrics") or {}
        value = metrics.get(in_record(metric, metrics))
        if value is None and metric == "eval_loss":
            value = (record.get("dropped") or {}).get("eval_loss")
        return value if isinstance(value, (int, float)) else None

    def without_report(self) -> list[Path]:
        """The run folders that record an end and have no report: their process was killed in between."""
        folders = [self.folder / name for name in self.cells]
        return [folder for folder in folders if has_ended(folder) and not (folder / REPORT).is_file()]

    def _take(self, entry: dict[str, Any]) -> None:
        """The status of a run folder is the truth about its cell, as far as it has ended."""
        record = _read(self.folder / entry["name"] / "run.json")
        status = _status_of(record)
        if status in ENDED:
            error = record.get("error") or {}
            reason = f"{error.get('type')}: {error.get('message')}" if error else None
            reason = INTERRUPTED if error.get("type") == "KeyboardInterrupt" else reason
            entry |= {"status": status, "reason": reason if status not in DONE else None}
            entry["device"] = (record.get("cell") or {}).get("device") or entry.get("device")
        elif entry["status"] in DONE:
            entry |= {"status": "waiting", "reason": None}  # its folder was removed

    def _from_folder(self, name: str) -> dict[str, Any]:
        """What a run folder says of a cell that sweep.json does not know; empty without one."""
        key = self._key(name)
        return {"key": key, "status": self._status(name)} if key else {}

    def _status(self, name: str) -> str:
        status = _status_of(_read(self.folder / name / "run.json"))
        known = self.cells.get(name, {}).get("status", "waiting")
        return status if status in ENDED else "waiting" if known in DONE else known

    def _key(self, name: str) -> str | None:
        record = _read(self.folder / name / "run.json")
        return (record.get("cell") or {}).get("key") or self.cells.get(name, {}).get("key")


def has_ended(folder: Path) -> bool:
    """Whether the run in a folder has recorded how it ended."""
    return _status_of(_read(folder / "run.json")) in ENDED


def _status_of(record: Mapping[str, Any]) -> str | None:
    """The status of a run.json; a run that was interrupted has not failed by itself."""
    interrupted = (record.get("error") or {}).get("type") == "KeyboardInterrupt"
    return "preempted" if interrupted else record.get("status")


def _is_fault(record: Mapping[str, Any]) -> bool:
    """Whether a run failed by an error of the device, of which torch's and the CUDA libraries' texts speak.

    After one of these nothing can be computed in the process any more. Memory that ran out is none of them.
    """
    message = str((record.get("error") or {}).get("message", ""))
    memory = any(sign in message for sign in _NO_MEMORY)
    return _status_of(record) == "failed" and not memory and any(sign in message for sign in _FAULTS)


def _by_other(entry: Mapping[str, Any], code: str) -> bool:
    """Whether a cell was begun or finished by other code than this; one that only waits was not."""
    begun = entry.get("code") is not None or entry["status"] in DONE
    return begun and entry.get("code") != code


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
