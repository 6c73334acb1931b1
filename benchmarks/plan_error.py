"""How far `recipe=plan` is from what is measured: peak memory and step time of real short runs.

    python benchmarks/plan_error.py --out results
    python benchmarks/plan_error.py --out results --cells 0.6b-bf16-1x512,4b-nf4-4x2048
    python benchmarks/plan_error.py --out results --jobs 4      # memory alone, four models at a time

Each cell trains a few steps of random weights at the true shape on rows of exactly its length. Cells of one
model share a process, which begins anew where one leaves memory behind, fails or takes too long; packs are
sweeps of their own. OUT gets a file a cell, plan_error.json and plan_error.md; a cell that is there already
is not measured again. Predicted and measured are both of one card: what tensors take (allocated) and what the
allocator holds (reserved), which includes the pools of CUDA graphs. Without a GPU other cells are measured,
of models that a CPU can train: each is a run of its own, whose record has both, and its peak is the memory of
its process.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import compose, logged_steps, steady_step, write_rows
from plan_cells import CELLS, CPU_CELLS, Cell, markdown

from runner.benchmark.rows import random_words

ROOT = Path(__file__).resolve().parents[1]
_LEFT = 2**26  # bytes that a cell may leave behind for the next one to share its process
_STEPS, _WARMUP = 4, 3
_STEPS_OF_A_RUN = 8


def main(argv: list[str] | None = None) -> int:
    """Measure the chosen cells and print the table; 1 when a cell has no measurement."""
    options = _options(argv)
    if options.worker:
        return work(json.loads(options.worker.read_text()))
    options.out.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in options.cells:
        groups.setdefault((cell.model, cell.cells), []).append(cell)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda cells: _measure(cells, options), groups.values()))
    found = _results(options)
    (options.out / "plan_error.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "plan_error.md").write_text(markdown(found))
    print("\n" + markdown(found))
    return int(any("error" in found.get(cell.name, {"error": ""}) for cell in options.cells))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from runner.plan.gpus import found_cards

    here = CELLS if found_cards() else CPU_CELLS
    known = {cell.name: cell for cell in (*CELLS, *CPU_CELLS)}
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument(
        "--cells", default=",".join(cell.name for cell in here), help="some of %(default)s (default: all)"
    )
    parser.add_argument("--limit", type=float, default=120, help="seconds a cell may take (%(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="models measured at once; no times if several (%(default)s)"
    )
    parser.add_argument("--model-override", choices=["tiny"], help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    names = list(dict.fromkeys(options.cells.split(",")))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--cells: {', '.join(unknown)} is none of {', '.join(known)}")
    options.cells = [known[name] for name in names]
    return options


def _file(out: Path, cell: Cell) -> Path:
    return out / f"{cell.name}.json"


def _results(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    files = {cell.name: _file(options.out, cell) for cell in (*CELLS, *CPU_CELLS)}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def _measure(cells: list[Cell], options: argparse.Namespace) -> None:
    """Measure cells in as few processes as it takes; each leaves a file."""
    while left := [cell for cell in cells if not _file(options.out, cell).is_file()]:
        log = options.out / f"{left[0].name}.log"
        job = {
            "cells": [dataclasses.asdict(cell) for cell in left],
            "out": str(options.out.resolve()),
            "small": options.model_override,
            "timed": options.jobs == 1,
        }
        jobs = options.out / f"{left[0].name}.job"
        jobs.write_text(json.dumps(job))
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, __file__, "--worker", str(jobs)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
            )
            _wait(process, left, options)
        jobs.unlink()
        for cell in left:
            if cell.name in (found := _results(options)):
                wall = found[cell.name].get("wall_seconds", options.limit)
                print(f"{cell.name}: {found[cell.name].get('error') or 'measured'}, {wall} s", flush=True)
        done = [cell for cell in left if _file(options.out, cell).is_file()]
        if not done:  # the first one ended its process
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            _write(options.out, left[0], {"error": " ".join(lines[-3:])[-400:] or "no output"})


def _wait(process: subprocess.Popen[bytes], left: list[Cell], options: argparse.Namespace) -> None:
    """Wait for a process; end it, and say so, where a cell takes longer than the limit."""
    began, done = time.monotonic(), 0
    while process.poll() is None:
        time.sleep(0.2)
        now = sum(_file(options.out, cell).is_file() for cell in left)
        if now > done:
            began, done = time.monotonic(), now
        if time.monotonic() - began > options.limit and now < len(left):
            os.killpg(process.pid, 9)
            process.wait()
            slow = next(cell for cell in left if not _file(options.out, cell).is_file())
            _write(options.out, slow, {"error": f"ended after {options.limit:g} s, the limit"})


def _write(out: Path, cell: Cell, found: Mapping[str, Any]) -> None:
    temporary = out / f".{cell.name}"
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.replace(_file(out, cell))


def work(job: dict[str, Any]) -> int:
    """The process of some cells: measure one after the other until one leaves memory behind."""
    out = Path(job["out"])
    for entry in job["cells"]:
        cell = Cell(**{**entry, "overrides": tuple(entry["overrides"])})
        began = time.monotonic()
        found: dict[str, Any]
        with tempfile.TemporaryDirectory(prefix="plan-error-") as name:
            try:
                found = measured(cell, Path(name), job["small"])
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"[:400]}
        if not job["timed"] and "measured" in found:
            found["measured"]["step_seconds"] = None
        left = _free()
        _write(out, cell, {**found, "wall_seconds": round(time.monotonic() - began, 1), "left_bytes": left})
        if left > _LEFT:
            break
    return 0


def _free() -> int:
    """Give back the memory of a cell; bytes that are left."""
    import torch

    torch.compiler.reset()
    gc.collect()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def measured(cell: Cell, work: Path, small: str | None) -> dict[str, Any]:
    """What is predicted of a cell, and what it takes."""
    words = cell.words(small)
    if cell.on_cpu:
        return {"title": cell.name, **_run(cell, words, work), "card": None}
    result = _pack(cell, words, work) if cell.cells > 1 else _solo(cell, words, work)
    memory, seconds, card = predicted(cell, words, result.get("rate"))
    return {
        "title": cell.name,
        "predicted": {**memory, "step_seconds": seconds},
        "measured": {key: result.get(key) for key in ("allocated", "reserved", "rss", "step_seconds")},
        "card": card.name if card else None,
    }


def predicted(cell: Cell, words: list[str], rate: float | None) -> tuple[dict[str, Any], float | None, Any]:
    """Bytes by kind and in all, seconds of a step (None without a GPU), and the card."""
    from recipes import OBJECTIVES
    from runner.config.recipe_rules import training_recipe
    from runner.plan.estimate import make_case
    from runner.plan.find import find_architecture
    from runner.plan.gpus import found_cards

    config = compose(["recipe=plan", f"plan.cells={cell.cells}", *words])
    recipe = str(training_recipe(config.trainer["_target_"], OBJECTIVES))
    architecture = find_architecture(config.model)
    case = make_case(config, OBJECTIVES[recipe], recipe, architecture, cell.length)
    card = next(iter(found_cards()), None)
    memory = case.memory(card)
    found = {"parts": dict(memory.parts), "allocated": memory.allocated, "reserved": memory.reserved}
    time = case.duration(card, rate=rate) if card else None
    return found, time.step if time else None, card


def _solo(cell: Cell, words: list[str], work: Path) -> dict[str, Any]:
    """A few steps in this process, as ``recipe=benchmark`` measures them."""
    from recipes import OBJECTIVES
    from recipes.benchmark import OURS, measured_config, run_job
    from runner.config.recipe_rules import training_recipe

    sizes = [f"benchmark.length={cell.length}", f"benchmark.steps={_STEPS}", f"benchmark.warmup={_WARMUP}"]
    words = [word for word in words if not word.startswith("data=")]
    config = compose(["recipe=benchmark", *words, *sizes])
    recipe = str(training_recipe(config.trainer["_target_"], OBJECTIVES))
    config = measured_config(config, OBJECTIVES[recipe], recipe, work)
    job = {"recipe": recipe, "config": dataclasses.asdict(config), "side": OURS, "work": str(work)}
    side = run_job({**job, "rows": str(work / "rows")})
    return {
        "allocated": side.get("peak_allocated_bytes"),
        "reserved": side.get("peak_reserved_bytes"),
        "rss": side.get("peak_rss_bytes"),
        "step_seconds": statistics.median(side["step_seconds"]),
        "rate": side["matmul_flops_per_second"],
    }


def _pack(cell: Cell, words: list[str], work: Path) -> dict[str, Any]:
    """A packed sweep of so many cells, whose first record has what its process took."""
    record, run = _command(cell, words, work)
    if record["metrics"].get("pack_cells_at_once") != cell.cells:
        raise RuntimeError(f"{record['metrics'].get('pack_cells_at_once')} cells shared a pass")
    step = steady_step(logged_steps(run), _WARMUP)
    which = "reserved" if record["device"]["kind"] == "cuda" else "rss"
    return {which: record["metrics"]["peak_memory_bytes"], "step_seconds": step}


def _run(cell: Cell, words: list[str], work: Path) -> dict[str, Any]:
    """A run, or a packed sweep, of a process of its own that its record compares."""
    found = _command(cell, words, work)[0]["predicted"]
    measured = {"reserved": found["measured_peak_bytes"], "step_seconds": found["measured_step_seconds"]}
    said = {"reserved": found["peak_bytes"], "step_seconds": found["step_seconds"]}
    return {"predicted": {"allocated": None, **said}, "measured": {"allocated": None, **measured}}


def _command(cell: Cell, words: list[str], work: Path) -> tuple[dict[str, Any], Path]:
    """Run a cell as a command; returns its record, or that of one of its cells, and the run folder."""
    command = [sys.executable, "-m", "runner", *words, f"output_dir={work / 'run'}"]
    if cell.length:
        count = _STEPS_OF_A_RUN * cell.batch
        write_rows(work / "rows.jsonl", ({"text": random_words(cell.length, seed)} for seed in range(count)))
        command += ["data=text", f"data.path={work / 'rows.jsonl'}", "generation.samples=0"]
        command += ["data.metric=null", f"trainer.max_steps={_STEPS_OF_A_RUN}"]
        command += [f"trainer.max_length={cell.length}", 'trainer.save_strategy="no"']
    if cell.cells > 1:
        rates = ",".join(f"{1 + number / 10:g}e-4" for number in range(cell.cells))
        command += ["-m", f"trainer.learning_rate={rates}"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    file = next((work / "run").glob("*/run.json" if cell.cells > 1 else "run.json"))
    return json.loads(file.read_text()), file.parent


if __name__ == "__main__":
    sys.exit(main())
