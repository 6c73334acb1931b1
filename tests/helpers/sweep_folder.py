"""Sweep folders made of plain files, for tests that read them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def cell(
    name: str,
    loss: float | None = None,
    *,
    group: str | None = None,
    status: str = "completed",
    ledger: str | None = None,
    reason: str | None = None,
    steps: int = 0,
    rows: Iterable[float] | None = None,
    lora: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    record: bool = True,
    entry: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A cell of ``make_sweep``: its line in sweep.json, and what its files hold.

    ``name`` is made of overrides (``lora.r=8,seed=1``); ``rows`` are the losses of ten tokens each in
    held_out.jsonl; ``entry`` adds keys to the line, and ``more`` goes into run.json.
    """
    values = dict(part.split("=", 1) for part in name.split(",") if "=" in part)
    found = {"eval_loss": loss, "tokens_per_second": 100.0} if status == "completed" else {}
    return {
        "entry": {
            "name": name,
            "key": "sha256:0",
            "overrides": values,
            "group": group or name,
            "status": ledger or status,
            "reason": reason,
            **(entry or {}),
        },
        "run": {"status": status, "seconds": 10.0, "metrics": {**found, **(metrics or {})}, **more},
        "steps": steps,
        "rows": rows,
        "lora": lora,
        "record": record,
    }


def repeats(group: str, *losses: float, **more: Any) -> list[dict[str, Any]]:
    """The completed repeats of one group, their seeds counted from 0."""
    return [cell(f"{group},seed={n}", loss, group=group, seed=n, **more) for n, loss in enumerate(losses)]


def make_sweep(folder: Path, cells: Iterable[Mapping[str, Any]], /, **changes: Any) -> Path:
    """Write a sweep folder; ``changes`` replace keys of sweep.json."""
    cells = list(cells)
    axes: dict[str, list[str]] = {}
    for item in cells:
        for axis, value in item["entry"]["overrides"].items():
            if axis != "seed" and value not in axes.setdefault(axis, []):
                axes[axis].append(value)
    folder.mkdir(parents=True, exist_ok=True)
    sweep = {
        "status": "completed",
        "command": "python -m runner -m lora.r=8,16",
        "started": "2026-11-21T03:20:00Z",
        "ended": "2026-11-21T03:25:00Z",
        "seconds": 300.0,
        "axes": axes,
        "settings": {"repeat": 1, "metric": "eval_loss"},
        "jobs": [{"name": "pack-1", "cells": [item["entry"]["name"] for item in cells], "alone": None}],
        "cells": [item["entry"] for item in cells],
        "best": None,
    }
    (folder / "sweep.json").write_text(json.dumps(sweep | changes), encoding="utf-8")
    for item in cells:
        if item["record"] and item["run"]["status"] != "waiting":
            _write_cell(folder / item["entry"]["name"], item)
    return folder


def _write_cell(folder: Path, item: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(item["run"]), encoding="utf-8")
    if item["lora"] is not None:
        config = {"recipe": "sft", "lora": item["lora"]}
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    if item["rows"] is not None:
        lines = [{"index": n, "loss": loss, "tokens": 10} for n, loss in enumerate(item["rows"])]
        write_lines(folder / "held_out.jsonl", lines)
    if item["steps"]:
        lines = [{"step": n, "loss": 2.0 / n} for n in range(1, item["steps"] + 1)]
        evals = [{"step": step, "eval_loss": 0.5} for step in sorted({-(-item["steps"] // 2), item["steps"]})]
        write_lines(folder / "metrics.jsonl", [*lines, *evals])


def write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


SAMPLE = {
    "index": 0,
    "prompt": "Two lattes",
    "expected": "{}",
    "before": "Sure!",
    "after": "{}",
    "before_match": False,
    "after_match": True,
}


def grid(folder: Path, count: int = 2, **changes: Any) -> Path:
    """A sweep of 3 x 4 with repeats, a failure, a diverged and a dropped cell, and samples of the best."""
    draw = random.Random(5)
    cells = []
    for rank in (8, 16, 32):
        for step, rate in enumerate(("1e-4", "3e-4", "1e-3", "3e-3")):
            group = f"lora.r={rank},trainer.learning_rate={rate}"
            losses = [0.5 - 0.03 * step + abs(rank - 16) / 1000 + draw.gauss(0, 0.001) for _ in range(count)]
            facts = {
                "exact_match_before": 0.0,
                "exact_match_after": 0.9,
                "trainable_parameters": rank * 10**6,
            }
            cells += repeats(group, *losses, steps=60, metrics=facts, lora={"r": rank, "lora_alpha": 32})
    error = {"type": "OutOfMemoryError", "message": "no memory", "traceback": "Traceback: line 41"}
    dropped = {"step": 30, "fraction": 0.5, "eval_loss": 1.5, "rank": 2, "of": 2}
    cells += [
        cell("lora.r=64,trainer.learning_rate=1e-4", status="failed", error=error, steps=9),
        cell("lora.r=64,trainer.learning_rate=3e-4", status="failed", error=error, steps=9),
        cell(
            "lora.r=64,trainer.learning_rate=3e-3",
            status="diverged",
            error=error | {"type": "Diverged"},
            steps=5,
        ),
        cell("lora.r=64,trainer.learning_rate=1e-3", status="dropped", dropped=dropped, steps=30),
    ]
    facts = {
        "device": {"name": "test machine"},
        "packages": {"torch": "2.13.0"},
        "model": {"path": "org/tiny"},
    }
    for item in cells:
        item["run"] |= facts
    make_sweep(folder, cells, **changes)
    best = "lora.r=16,trainer.learning_rate=3e-3"
    for path in folder.glob(f"{best}*"):
        write_lines(path / "samples.jsonl", [SAMPLE | {"index": n} for n in range(3)])
        (path / "report.html").write_text("<p>cell</p>")
        (path / "adapter").mkdir()
        (path / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def many(folder: Path) -> Path:
    """64 cells of four axes."""
    draw = random.Random(1)
    cells = [
        cell(f"lora.r={r},x.lr={lr},b={b},c={c}", draw.random(), steps=200)
        for r in (4, 8, 16, 32)
        for lr in (1, 2, 3, 4)
        for b in ("true", "false")
        for c in ("u", "v")
    ]
    return make_sweep(folder, cells)


def scattered(folder: Path) -> Path:
    """Values that a search drew at random, each once."""
    draw = random.Random(1)
    return make_sweep(
        folder, [cell(f"lr={draw.random():.6f},wd={draw.random():.6f}", draw.random()) for _ in range(40)]
    )
