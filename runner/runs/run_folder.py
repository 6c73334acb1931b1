"""The run folder: created once, filled during the run, and complete also when the run fails."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config.adapters import adapter_digests
from runner.core import environment
from runner.core.atomic import json_line, json_text, sha256_of_file, write_atomically
from runner.core.errors import ConfigError, Issue
from runner.core.secrets import masked
from runner.core.timestamp import utc_now
from runner.runs.git_state import PATCH, package_digest, source

_FALLBACK_NAME = "run"


class RunFolder:
    """One run's folder and its record, ``run.json``.

    ``record`` may be filled by anyone; it is written on every change of status. ``metrics`` and ``times`` are
    its parts for numbers (bytes, tokens per second, scores) and for seconds by phase.
    """

    def __init__(self, path: Path, command: str, overrides: list[str], config_yaml: str, seed: int) -> None:
        self.path = path
        self._earlier = {file: file.read_bytes() for file in _records(path)}
        self._started = time.monotonic()
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
            "times": self.times,
            "notes": self.notes,
            "git": state.record() if state else None,
            "code": package_digest(),
            "packages": environment.package_versions(),
            "variables": environment.variables(),
            "python": environment.python_version(),
            "device": environment.device(),
            "digests": {},
        }
        write_atomically(path / "config.yaml", config_yaml)
        (path / PATCH).unlink(missing_ok=True)  # of an earlier start
        if state and state.patch:
            (path / PATCH).write_bytes(state.patch.encode(errors="surrogateescape"))
        self.write()

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
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json_line(entry))

    def logged(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``; a kill may have cut the last one."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def rewind(self, step: int) -> None:
        """Remove the lines of ``metrics.jsonl`` after a step: a resumed run writes them again."""
        file = self.path / "metrics.jsonl"
        if file.is_file():
            kept = [line for line in self.logged() if line.get("step", 0) <= step]
            write_atomically(file, map(json_line, kept))

    def write_lines(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a JSONL file such as ``samples.jsonl``."""
        write_atomically(self.path / name, map(json_line, rows))

    def write(self) -> None:
        """Write ``run.json`` atomically."""
        self.record["seconds"] = round(time.monotonic() - self._started, 3)
        write_atomically(self.path / "run.json", json_text(self.record))

    def withdraw(self) -> None:
        """Remove what a run with config errors has written: an earlier run's records are restored."""
        if not self._earlier:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            (self.path / PATCH).unlink(missing_ok=True)
        for file, content in self._earlier.items():
            file.write_bytes(content)

    def finish(self, status: str, error: BaseException | None = None) -> None:
        """Write the final status, the error if there is one, the digests of the results, and the report."""
        self.record |= {"status": status, "ended": utc_now(), "error": _error(error)}
        self.record["digests"] = {
            **adapter_digests(self.path / "adapter"),
            "config": sha256_of_file(self.path / "config.yaml"),
        }
        self.write()
        from runner.reports.run_report import write_report

        write_report(self.path)


def create(output_dir: str | None, name: str, resume: bool = False) -> Path:
    """Make the run's folder: ``output_dir``, new or empty, or a fresh one under ``outputs/``.

    Two starts in the same second get two folders. Raises ``ConfigError`` for a folder that holds something,
    unless it is a run folder to ``resume``.
    """
    if output_dir is not None:
        path = Path(output_dir).expanduser()
        if resume and (path / "run.json").is_file():
            return path
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            message = f"{path} is not empty, and a run needs a folder of its own"
            raise ConfigError(
                Issue(f"output_dir={output_dir}", message, "name a new folder, or leave output_dir out")
            )
        path.mkdir(parents=True, exist_ok=True)
        return path
    now = datetime.now()
    safe = (
        "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name) or _FALLBACK_NAME
    )
    parent = Path("outputs") / now.strftime("%Y-%m-%d")
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = parent / f"{now.strftime('%H-%M-%S')}-{safe}{f'-{number}' if number > 1 else ''}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise FileExistsError(f"no free name for a run in {parent}")


def _records(path: Path) -> list[Path]:
    """The files of an earlier run in this folder that a new start writes over."""
    return [file for file in (path / "config.yaml", path / "run.json", path / PATCH) if file.is_file()]


def _error(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {
        "type": type(error).__name__,
        "message": masked(str(error)),
        "traceback": masked("".join(traceback.format_exception(error))),
    }
