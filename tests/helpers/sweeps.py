"""Sweeps whose processes are stand-ins that train nothing, or whose jobs the test runs; their parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from helpers.command import Run
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import RunConfig, SweepSettings
from runner.core.paths import PACKAGE
from runner.sweep import processes
from runner.sweep.cells import Cell, expand
from runner.sweep.ledger import Ledger

# A child that trains nothing: it writes the run folders that a job leaves. PLAN says which cells end
# otherwise than completed, END or END@DEVICE; the process of a job may end in the middle.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from runner.core.process import orphan
orphan.die_with_parent()
job = json.loads(Path(json.loads(sys.stdin.readline())).read_text())
plan = json.loads(os.environ.get("PLAN", "{}"))
print("job", job["name"], "on", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
with open("started.txt", "a") as stream:
    stream.write(job["name"] + ":" + ",".join(c["name"] for c in job["cells"]) + "\\n")
worst = 0
for cell in job["cells"]:
    folder = Path(job["sweep"]) / cell["name"]
    folder.mkdir(parents=True, exist_ok=True)
    lora, trainer = cell["config"]["lora"], cell["config"]["trainer"]
    loss = 1 / lora.get("r", 8) + abs(trainer["learning_rate"] - 3e-4) + cell["config"]["seed"] / 1000
    mark = {"key": cell["key"], "sweep": job["sweep"], "job": job["name"], "device": sys.argv[2]}
    record = {"status": "running", "metrics": {}, "cell": mark, "overrides": cell["overrides"]}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(json.dumps({"seed": cell["config"]["seed"], "lora": lora}))
    end, _, device = plan.get(cell["name"], "completed").partition("@")
    end = end if device in ("", sys.argv[2]) else "completed"
    if end == "hang":
        Path("hangs-" + job["name"]).touch()
        time.sleep(60)
    if end == "wait":
        while not Path("go").exists():
            time.sleep(0.05)
        end = "completed"
    if end == "exit":
        os._exit(1)
    if end == "kill":
        print("about to die", flush=True)
        Path("go").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "pack":
        work = Path(job["sweep"]) / "jobs" / job["name"] / "1" / "checkpoints" / "checkpoint-1"
        work.mkdir(parents=True)
        (work / "of").write_text(job["name"])
        sys.exit(75)
    if end == "checkpoint":
        (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
        sys.exit(75)
    record |= {"status": end, "metrics": {"eval_loss": loss}}
    kept = folder / ("adapter/adapter_config.json" if lora else "model/config.json")
    if cell["config"]["recipe"] == "sft":
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("{}")
    if end in ("failed", "diverged", "fault"):
        message = "CUDA error: an illegal memory access was encountered" if end == "fault" else "as planned"
        record["error"] = {"type": "Odd", "message": message, "traceback": ""}
        record["status"] = "diverged" if end == "diverged" else "failed"
        worst = max(worst, 3) if end == "diverged" else 1
    (folder / "run.json").write_text(json.dumps(record))
sys.exit(worst)
"""


@dataclass
class Ran:
    """How a sweep ended, and what it left."""

    code: int
    folder: Path
    said: str

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "sweep.json").read_text(encoding="utf-8"))

    @property
    def statuses(self) -> dict[str, str]:
        return {entry["name"]: entry["status"] for entry in self.record["cells"]}

    def job(self, name: str) -> dict:
        return json.loads((self.folder / "jobs" / f"{name}.json").read_text(encoding="utf-8"))


def one(*words: str) -> RunConfig:
    """The config of a run by its words."""
    (run,) = run_config.check(run_config.parse(list(words), OBJECTIVES)).configs
    return run


def ledger_of(cells: list[Cell], folder: Path) -> Ledger:
    """A ledger in which cells are entered."""
    found = Ledger(folder, "python -m runner", SweepSettings())
    found.add(cells, {})
    return found


def cells_of(count: int, folder: Path, *words: str) -> list[Cell]:
    """So many cells that can be packed, of rising rank."""
    run = one(*words)
    made = []
    for number in range(1, count + 1):
        made += expand(
            [f"lora.r={number}"], replace(run, lora={**run.lora, "r": number}), SweepSettings(), folder
        )
    return made


# a shell that starts the tests in its background has interrupts ignored, here and in all that they start
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from runner.__main__ import main
from runner.sweep import devices, processes, verdicts
processes.WORKER = [sys.argv.pop(1)]
devices.cuda_devices = list
verdicts.read_data = lambda *_: None  # for which transformers would be imported
sys.exit(main())
"""


def hanging(place: Path, *words: str, plan: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A sweep in a process of its own in which the cells of ``plan`` do not end, each in another job."""
    (place / "start.py").write_text(textwrap.dedent(SCRIPT))
    plan = plan or {"lora.r=4": "hang"}
    environment = {**os.environ, "PLAN": json.dumps(plan), "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "start.py", "worker.py", "-m", "lora.r=4,8", *words, "output_dir=s"]
    process = subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: len(list(place.glob("hangs-*"))) == len(plan))
    return process


def wait_for(there: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is there, so many seconds at most."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The numbers of the processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(number: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


def sweep_here(
    cli: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, *words: str, folder: str = "sweep"
) -> tuple[Run, list[int]]:
    """The sweep as its command leaves it, and the exit codes of its jobs, run in this process.

    A worker of a job's own needs 5 s to import the libraries; here it ends at once, and leaves the job to us.
    """
    from runner.sweep.worker import run_job  # which imports torch

    with monkeypatch.context() as patch:
        patch.setattr(processes, "WORKER", ["-c", ""])
        run = cli("-m", *words, folder=folder)
    return run, [run_job(file) for file in sorted(run.folder.glob("jobs/*.json"))]
