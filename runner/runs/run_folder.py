"""The run folder: created once, filled during the run, and complete also when the run fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config.adapters import adapter_digests
from runner.core import console, environment
from runner.core.atomic import (
    TEMPORARY,
    flush_to_disk,
    json_line,
    json_text,
    sha256_of_file,
    write_atomically,
)
from runner.core.errors import ConfigError, Issue
from runner.core.process.folder_lock import NAME as LOCK
from runner.core.process.folder_lock import hold, unwritable
from runner.core.secrets import masked
from runner.core.timestamp import utc_now
from runner.runs import checkpoint
from runner.runs.earlier import Earlier, Spent
from runner.runs.git_state import PATCH, package_digest, source

METRICS, REPORT = "metrics.jsonl", "report.html"
HOLDS = "runs in this folder"
_FALLBACK_NAME = "run"


class RunFolder:
    """One run's folder and its record, ``run.json``.

    ``record`` may be filled by anyone; it is written on every change of status. ``metrics`` and ``times`` are
    its parts for numbers (bytes, tokens per second, scores) and for seconds by phase of this start.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        overrides: list[str],
        config_yaml: str,
        seed: int,
        device: Callable[[], dict[str, Any]] = environment.device,
        shared: Path | None = None,
    ) -> None:
        """Write the record of a start into ``path``, which this process holds. Raises ``ConfigError``.

        ``device`` says what the run computes on. ``shared`` is the run folder where ``path`` is one for what
        a single process of several has to say.
        """
        self.path, self.shared = path, shared or path
        self._lock = hold(path, HOLDS)
        self._earlier = {file: file.read_bytes() for file in _records(path)}
        self.compared: Earlier | None = None
        self._started = time.monotonic()
        self._spent = Spent.of(self._earlier.get(path / "run.json", b""))
        self.metrics: dict[str, Any] = {}
        self.times: dict[str, float] = {}
        self.notes: list[str] = []
        state = source()
        self.record: dict[str, Any] = {
            "status": "running",
            "command": command,
            "overrides": overrides,
            "started": utc_now(),
            "seed": seed,
            "metrics": self.metrics,
            "notes": self.notes,
            "git": state.record() if state else None,
            "code": package_digest(),
            "packages": environment.package_versions(),
            "variables": environment.variables(),
            "python": environment.python_version(),
            "device": device(),
            "digests": {},
        }
        try:
            _clear(path)
            write_atomically(path / "config.yaml", config_yaml)
            for name in (PATCH, REPORT):
                (path / name).unlink(missing_ok=True)  # of an earlier start
            if state and state.patch:
                (path / PATCH).write_bytes(state.patch.encode(errors="surrogateescape"))
            self.write()
        except OSError as error:
            self._lock.release()
            raise ConfigError(unwritable(path, error)) from error

    @property
    def is_cell(self) -> bool:
        """Whether the run is a cell of a sweep."""
        return "cell" in self.record

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of a phase to ``times``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.times[phase] = round(self.times.get(phase, 0.0) + time.monotonic() - began, 3)

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; a value that is not finite becomes null there."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json_line(entry))

    def logged(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``; a kill may have cut the last one."""
        return read_log(self.path)

    def lines(self) -> int:
        """The number of lines of ``metrics.jsonl``, which are on the disk when this returns."""
        file = self.path / METRICS
        if not file.is_file():
            return 0
        flush_to_disk(file)
        return file.read_bytes().count(b"\n")

    def rewind(self, step: int, lines: int | None) -> None:
        """Remove what ``metrics.jsonl`` holds behind a checkpoint: a resumed run writes it again.

        ``lines`` counts those that stood there when the checkpoint of ``step`` was written; where that is not
        known, None, the lines of later steps are removed. At step 0 nothing of earlier starts counts.
        """
        self._spent = self._spent if step else Spent()
        if (self.path / METRICS).is_file():
            found = self.logged()
            kept = found[:lines] if lines is not None else [e for e in found if e.get("step", 0) <= step]
            write_atomically(self.path / METRICS, map(json_line, kept))

    def write_lines(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a JSONL file such as ``samples.jsonl``."""
        write_atomically(self.path / name, map(json_line, rows))

    def write(self) -> None:
        """Write ``run.json`` atomically."""
        self.record |= self._spent.added_to(time.monotonic() - self._started, self.times)
        write_atomically(self.path / "run.json", json_text(self.record))

    def withdraw(self) -> None:
        """Remove what a run with config errors has written: an earlier run's records are restored."""
        if not self._earlier:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            (self.path / PATCH).unlink(missing_ok=True)
        for file, content in self._earlier.items():
            file.write_bytes(content)
        self._lock.release()

    def warn_of_other_inputs(self) -> None:
        """Note where this run, which repeats an earlier one, does not have its rows, its base or its
        parents."""
        if self.compared is not None:
            found = self.compared.other_inputs(self.record)
            self.notes += [note for note in found if note not in self.notes]

    def warn(self, notes: Iterable[str]) -> None:
        """Note, and say, what was found behind the opening table."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
                console.warn(note)

    def finish(self, status: str, error: BaseException | None = None) -> None:
        """Write the final status, the error if there is one, the digests of the results, and the report."""
        try:
            self.record |= {"status": status, "ended": utc_now(), "error": _error(error)}
            self.record["digests"] = result_digests(self.path)
            if status == "completed" and self.compared is not None:
                self.warn_of_other_inputs()
                self.warn(self.compared.other_results(self.record))
            self.write()
            from runner.reports.run_report import write_report

            write_report(self.path)
        finally:
            self._lock.release()


def abandon(path: Path) -> None:
    """Let another process have a folder that ``create`` returned, and remove it where it is still empty."""
    hold(path, HOLDS).release()
    with contextlib.suppress(OSError):
        path.rmdir()


def result_digests(path: Path) -> dict[str, str]:
    """``sha256:HEX`` of what a run folder holds of an adapter (``adapter_digests``), and of its config."""
    config = path / "config.yaml"
    found = {"config": sha256_of_file(config)} if config.is_file() else {}
    return {**adapter_digests(path / "adapter"), **found}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run folder's ``metrics.jsonl``. Raises ``ValueError`` for one that is no JSON.

    A kill may have cut the last line, which has no end then.
    """
    file = path / METRICS
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def create(output_dir: str | None, name: str, resume: bool = False) -> Path:
    """Make the run's folder and hold it: ``output_dir``, new or empty, or a fresh one under ``outputs/``.

    Two starts in the same second get two folders. Raises ``ConfigError`` for a folder that another process
    holds, that cannot be written, or that holds something, unless it is a run folder to ``resume``.
    """
    if output_dir is not None:
        path = Path(output_dir).expanduser()
        _check_file(output_dir, path)
        lock = hold(path, HOLDS)
        if (resume and (is_run(path) or _just_begun(path))) or not _content(path):
            return path
        lock.release()
        message = f"{path} is not empty, and a run needs a folder of its own"
        again = "resume=auto resumes the run in it, " if is_run(path) and not resume else ""
        raise ConfigError(
            Issue(f"output_dir={output_dir}", message, f"{again}name a new folder, or leave output_dir out")
        )
    now = datetime.now()
    safe = (
        "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name) or _FALLBACK_NAME
    )
    parent = Path("outputs") / now.strftime("%Y-%m-%d")
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(unwritable(parent, error)) from error
    for number in range(1, 1000):
        path = parent / f"{now.strftime('%H-%M-%S')}-{safe}{f'-{number}' if number > 1 else ''}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(unwritable(path, error)) from error
        hold(path, HOLDS)
        return path
    raise FileExistsError(f"no free name for a run in {parent}")


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, which has a record or checkpoints."""
    return (path / "run.json").exists() or (path / "checkpoints").is_dir()


def _just_begun(path: Path) -> bool:
    """Whether a folder holds no more than a run writes before its record, so that it was killed there."""
    first = {"config.yaml", PATCH, REPORT}
    return all(name in first or TEMPORARY.fullmatch(name) for name in _content(path))


def _content(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.name != LOCK]


def _check_file(output_dir: str, path: Path) -> None:
    if os.path.isfile(path):  # which no name is too long for
        message = f"{path} is a file, and a run needs a folder of its own"
        raise ConfigError(Issue(f"output_dir={output_dir}", message, "name a new folder"))


def _clear(path: Path) -> None:
    """Remove what a start that was killed has left half written."""
    for name in _content(path):
        if TEMPORARY.fullmatch(name):
            (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / "checkpoints" / checkpoint.TEMPORARY, ignore_errors=True)


def _records(path: Path) -> list[Path]:
    """The files of an earlier run in this folder that a new start writes over."""
    names = ("config.yaml", "run.json", PATCH, REPORT)
    return [path / name for name in names if (path / name).is_file()]


def _error(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {
        "type": type(error).__name__,
        "message": masked(str(error)),
        "traceback": masked("".join(traceback.format_exception(error))),
    }
