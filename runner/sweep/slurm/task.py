"""What a task of SLURM does: it becomes the worker of its job, as a local sweep would start it."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from pathlib import Path

from runner.sweep.devices import Device, choose
from runner.sweep.processes import WORKER, environment


def run_task(file: str) -> None:
    """Replace this process, which submitit has started, by the worker of the job in ``file``.

    SLURM sends its signals to every process of a step (tried on 22.05), so that a worker which was a child
    here would get the first SIGTERM, of which it makes a checkpoint, twice. Its output goes to JOB.log.
    """
    job = Path(file)
    device = _device(job)
    print(f"{job.stem} on {device.name}: {job.with_suffix('.log')}", flush=True)
    log = os.open(job.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.execve(sys.executable, [sys.executable, *WORKER, file, device.name], environment(device))


def _device(job: Path) -> Device:
    """What SLURM gave this task: one GPU, or all for a model that is spread over several; with its host."""
    cells = json.loads(job.read_text(encoding="utf-8"))["cells"]
    device = choose("auto", any(cell["config"]["model"]["device_map"] for cell in cells))[0]
    host = socket.gethostname()
    return dataclasses.replace(device, name=f"{host} {device.name}" if device.gpus else host)
