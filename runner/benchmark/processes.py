"""Each side of a benchmark in a process of its own, which leaves its measurement, or why there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from runner.core.atomic import json_text, write_atomically
from runner.core.errors import RunnerError

_LAST = 400  # characters of a log that are quoted


def run_side(command: list[str], job: dict[str, Any], work: Path, log: Path) -> dict[str, Any]:
    """Run ``python COMMAND JOB.json`` with its output in ``log``; what it measured, or its ``error``.

    The job gets the ``result`` file that the process shall write. It is ended when this block is left early.
    """
    file, result = work / "job.json", work / "result.json"
    write_atomically(file, json_text({**job, "work": str(work), "result": str(result)}))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *command, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            _end(process)
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    return {"error": f"{how}: {_tail(log)}"}


def write_result(job: dict[str, Any], measured: dict[str, Any]) -> None:
    """Leave the measurement, or the error, for the process that waits."""
    write_atomically(Path(job["result"]), json_text(measured))


def reason(error: Exception) -> str:
    """Why a side failed, in a line; the traceback is in its log."""
    text = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_LAST]


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-_LAST:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, with all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
