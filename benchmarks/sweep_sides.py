"""The processes that ``sweep_against_trl.py`` measures: how each is started, limited and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from common import compose, logged_steps, steady_step, trl_trainer, write_rows
from sweep_table import Row

from runner.benchmark.rows import random_words
from runner.sweep.devices import cuda_devices

ROOT = Path(__file__).resolve().parents[1]
_TAIL = 15  # lines of the log that are kept of a side that failed
_NOT_PACKED = "the cells run one by one"  # the worker's note on a pack that it had to give up
_SHOWN_PACKAGES = ("torch", "transformers", "trl")


class SideFailed(Exception):
    """A side gave no metrics."""


@dataclass(frozen=True)
class Settings:
    """What all sides of a row have in common."""

    steps: int
    warmup: int
    held_out: int
    generation: bool = False
    overrides: tuple[str, ...] = ()  # further ones, of the runner's sides


def measure(
    side: str,
    row: Row,
    settings: Settings,
    limit: float,
    log: Path,
    caches: Path | None = None,
    devices: int = 1,
) -> dict[str, Any]:
    """Run one side in a process of its own, and return its metrics or its error.

    ``caches`` holds compiled code; without it there is none from before. The packed side has so many
    ``devices``: GPUs, or where there are none workers that share the cores.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-against-trl-") as name:
        work = Path(name)
        try:
            return _measure(side, row, settings, limit, log, work, caches or work / "caches", devices)
        except Exception as error:
            reason = str(error) if isinstance(error, SideFailed) else f"{type(error).__name__}: {error}"
            return {"error": reason, "log": log.name, "tail": _lines(log)[-_TAIL:]}


def _measure(
    side: str,
    row: Row,
    settings: Settings,
    limit: float,
    log: Path,
    work: Path,
    caches: Path,
    devices: int,
) -> dict[str, Any]:
    count = settings.steps * row.batch
    write_rows(work / "rows.jsonl", ({"text": random_words(row.length, seed)} for seed in range(count)))
    held_out = range(count, count + settings.held_out)
    write_rows(work / "held_out.jsonl", ({"text": random_words(row.length, seed)} for seed in held_out))
    command = _command(side, row, settings, work, devices)
    began, clock = time.time(), time.monotonic()
    code = _run(command, log, limit, _environment(work, caches, devices))
    wall = time.monotonic() - clock
    if code:
        raise SideFailed(f"exit code {code}" if code > 0 else f"ended by signal {-code}")
    read = {"trl": _read_trl, "solo": _read_solo, "packed": _read_packed}[side]
    found = read(row, work, devices)
    if found["tokens"] != count * row.length:
        raise SideFailed(f"trained on {found['tokens']} tokens a cell instead of {count * row.length}")
    if side == "trl":
        wall = found["saved"] - found["excluded_seconds"] - began
    return {
        "cells": row.cells if side == "packed" else 1,
        "steps": settings.steps,
        "step_seconds": max(steady_step(ends, settings.warmup) for ends in found["ends"]),
        "wall_seconds": round(wall, 3),
        "peak_memory_bytes": found["peak_memory_bytes"],
        "times": found.get("times"),
        "place": _place(found),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ends": found["ends"],
    }


def _command(side: str, row: Row, settings: Settings, work: Path, devices: int) -> list[str]:
    overrides = _overrides(row, settings, work)
    if side == "trl":
        job = {"row": asdict(row), "overrides": [*overrides, f"trainer.learning_rate={_rate(0)}"]}
        job["held_out"] = settings.held_out
        (work / "job.json").write_text(json.dumps(job))
        return [sys.executable, str(ROOT / "benchmarks" / "sweep_against_trl.py"), "--trl", str(work)]
    overrides += [*settings.overrides, f"output_dir={work / side}"]
    if side == "solo":
        return [sys.executable, "-m", "runner", *overrides, f"trainer.learning_rate={_rate(0)}"]
    rates = ",".join(map(_rate, range(row.cells)))
    overrides += [f"trainer.learning_rate={rates}", f"sweep.devices={devices}"]
    return [sys.executable, "-m", "runner", "-m", *overrides]


def _rate(number: int) -> str:
    """The learning rate of a cell: 1e-4, 1.1e-4, ..."""
    return f"{1 + number / 10:g}e-4"


def _overrides(row: Row, settings: Settings, work: Path) -> list[str]:
    return [
        f"model={row.model}",
        "model.weights=random",
        f"quantization={row.quantization}",
        "lora=r16",
        "data=text",
        f"data.path={work / 'rows.jsonl'}",
        *([f"data.eval_path={work / 'held_out.jsonl'}"] if settings.held_out else []),
        *([] if settings.generation else ["generation.samples=0", "data.metric=null"]),
        f"trainer.max_steps={settings.steps}",
        f"trainer.per_device_train_batch_size={row.batch}",
        f"trainer.per_device_eval_batch_size={row.batch}",
        f"trainer.max_length={row.length}",
        'trainer.save_strategy="no"',
    ]


def _environment(work: Path, caches: Path, devices: int) -> dict[str, str]:
    """The first so many GPUs, the code of this checkout, and no caches but the given."""
    found = os.environ.get("PYTHONPATH")
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": ",".join(cuda_devices()[:devices]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([found] if found else [])]),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "HF_DATASETS_CACHE": str(work / "datasets"),
    }


def _run(command: list[str], log: Path, limit: float, environment: dict[str, str]) -> int:
    """Run a command with its output in ``log``; its exit code. Ended with all it started after ``limit``."""
    began = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while (code := _wait(process, 1.0)) is None:
                if time.monotonic() - began > limit:
                    raise SideFailed(f"ended after {limit:g} s, the limit")
                # ended at once, since it would take N times as long
                if note := next((line for line in _lines(log) if _NOT_PACKED in line), None):
                    raise SideFailed(note)
            return code
        finally:
            if process.poll() is None:
                _end(process)


def _lines(log: Path) -> list[str]:
    """The lines of a log that say something."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code, None if it has not ended by then."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, and wait until they have left the GPU."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in family:
        if child.is_running():
            child.kill()
    psutil.wait_procs(family, timeout=10)


def train_trl(work: Path) -> None:
    """The process of TRL's side: train one adapter, evaluate and save it, and leave ``trl.json``."""
    job = json.loads((work / "job.json").read_text())
    held_out = work / "held_out.jsonl" if job["held_out"] else None
    began = time.time()
    run = compose(job["overrides"])  # which TRL would not need, so that its time is taken off
    excluded = time.time() - began
    trainer, ends = trl_trainer(run, work / "trl", work / "rows.jsonl", held_out)
    trainer.train()
    if held_out:
        trainer.evaluate()
    trainer.save_model(str(work / "adapter"))
    saved = time.time()
    from runner.core import environment

    found = {
        "ends": [ends],
        "tokens": int(trainer._total_train_tokens),
        "saved": saved,
        "excluded_seconds": excluded,
        "peak_memory_bytes": environment.peak_memory(),
        "device": environment.device(),
        "packages": environment.package_versions(),
    }
    (work / "trl.json").write_text(json.dumps(found))


def _read_trl(row: Row, work: Path, devices: int) -> dict[str, Any]:
    return json.loads((work / "trl.json").read_text())


def _read_solo(row: Row, work: Path, devices: int) -> dict[str, Any]:
    return _read_run(work / "solo")


def _read_packed(row: Row, work: Path, devices: int) -> dict[str, Any]:
    """The first cell, and of each pack the ends of its steps, once all cells have been found to be complete
    and in one pack a device."""
    sweep = work / "packed"
    record = json.loads((sweep / "sweep.json").read_text())
    statuses = [cell["status"] for cell in record["cells"]]
    if len(statuses) != row.cells or set(statuses) != {"completed"}:
        raise SideFailed(f"not {row.cells} completed cells: {statuses}")
    packs = [[_read_run(sweep / name) for name in job["cells"]] for job in record["jobs"]]
    sizes = [run["pack_cells"] for pack in packs for run in pack]
    if len(packs) != devices or any(run["pack_cells"] != len(pack) for pack in packs for run in pack):
        raise SideFailed(f"the cells did not train in {devices} packs: {sizes}")
    peak = max(run["peak_memory_bytes"] for pack in packs for run in pack)
    return packs[0][0] | {"ends": [pack[0]["ends"][0] for pack in packs], "peak_memory_bytes": peak}


def _read_run(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "run.json").read_text())
    metrics = record["metrics"]
    return {
        "ends": [logged_steps(folder)],
        "tokens": metrics["tokens"],
        "peak_memory_bytes": metrics["peak_memory_bytes"],
        "pack_cells": metrics.get("pack_cells"),
        **{name: record[name] for name in ("times", "device", "packages")},
    }


def _place(found: dict[str, Any]) -> str:
    """Device and libraries in one line."""
    versions = [f"{name} {found['packages'][name]}" for name in _SHOWN_PACKAGES]
    return ", ".join([str(found["device"]["name"]), *versions])
