"""Measure the training step of a config: its speed, parts, memory and MFU, beside others on the same rows.

    python -m recipes.benchmark JOB.json

is the process of one side, which the recipe starts.
"""

from __future__ import annotations

from runner.core.library_env import set_library_env
from runner.core.process.uncaught import set_excepthook

set_library_env()  # before a side imports the libraries
if __name__ == "__main__":
    set_excepthook()

import dataclasses
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from recipes import OBJECTIVES
from recipes.train import train
from runner.benchmark.processes import reason, run_side, write_result
from runner.benchmark.results import summarised
from runner.benchmark.rows import load_for_trl, save_for_trl, write_rows
from runner.benchmark.table import print_table
from runner.cli.saved_config import to_yaml
from runner.config.objective import Objective
from runner.config.recipe_rules import training_recipe
from runner.config.recipes.benchmark_rules import peers
from runner.config.settings import RunConfig
from runner.core import console, environment
from runner.core.atomic import json_text, write_atomically
from runner.core.errors import RunnerError
from runner.core.secrets import masked
from runner.data.prepare import prepare
from runner.reports import terminal
from runner.runs.run_folder import RunFolder
from runner.training.out_of_memory import explained
from runner.training.setup import check_training

OURS = "runner"
_SIDE = ["-m", "recipes.benchmark"]
# Of the trainer: what would end training early, or is no part of a step.
_PLAIN = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
_LEFT_OUT = ("num_train_epochs", "load_best_model_at_end", "eval_on_start", "metric_for_best_model")


class _Measured(Exception):
    """Training has ended, and nothing of it is to be kept."""


def run(config: RunConfig, folder: RunFolder) -> None:
    """Measure the runner and ``against``, one after the other; print a table, write ``benchmark.json``.

    The log of each side goes to ``logs/``. A side that fails has its reason in the table. Raises
    ``ConfigError`` before anything is loaded, ``RunnerError`` at the end if the runner's own side failed.
    """
    recipe = str(training_recipe(config.trainer["_target_"], OBJECTIVES))
    objective, names = OBJECTIVES[recipe], peers(config.against)
    logs = folder.path / "logs"
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.path, prefix=".sides-") as temporary:
        work = Path(temporary)
        measured = measured_config(config, objective, recipe, work)
        with folder.timed("check"):
            setup = check_training(measured, objective, work)
        with folder.timed("data"):
            data = prepare(measured.data, setup.renderer, setup.max_length, config.seed, objective.kind)
            if config.benchmark.length:
                data.notes.clear()  # that rows are cut is how they get their length
            if names:
                save_for_trl(data.train, objective.kind, work / "rows")
        setup.record_inputs(config, folder, data)
        steps = measured.trainer["max_steps"]
        speed = setup.pieces.line()
        terminal.opening(config, data, setup.method_line(config), steps, folder.path, folder.notes, speed)
        job = {"recipe": recipe, "config": dataclasses.asdict(measured), "rows": str(work / "rows")}
        sides: dict[str, Any] = {}
        for name in (OURS, *names):
            console.out.print(f"measuring {name}")
            own = work / name
            own.mkdir()
            with folder.timed(name):
                sides[name] = run_side(_SIDE, {**job, "side": name}, own, logs / f"{name}.log")
    sides = summarised(sides)
    found = _benchmark(measured, recipe, folder, sides)
    write_atomically(folder.path / "benchmark.json", json_text(found))
    print_table(sides)
    if "error" in sides[OURS]:
        raise RunnerError(f"the runner's own side failed: {sides[OURS]['error']}")
    folder.metrics |= {key: sides[OURS][key] for key in ("tokens_per_second", "step_ms", "mfu")}
    memory = sides[OURS].get("peak_reserved_bytes") or sides[OURS]["peak_rss_bytes"]
    folder.metrics["peak_memory_bytes"] = memory


def measured_config(config: RunConfig, objective: Objective, recipe: str, work: Path) -> RunConfig:
    """The config of the training that is measured: as many steps, no held-out rows, nothing saved."""
    from runner.benchmark.meter import SPLIT_STEPS

    settings = config.benchmark
    steps = settings.warmup + settings.steps + SPLIT_STEPS
    trainer = {key: value for key, value in config.trainer.items() if key not in _LEFT_OUT}
    trainer |= {**_PLAIN, "max_steps": steps}
    data = dataclasses.replace(config.data, eval_path=None, eval_split=0.0, eval_max_rows=None, metric=None)
    if settings.length:
        trainer["max_length"] = settings.length
        batch = trainer.get("per_device_train_batch_size", 8) * trainer.get("gradient_accumulation_steps", 1)
        data = write_rows(work / "rows.jsonl", objective.kind, settings.length, steps * batch)
    # each cell of a sweep has resume=auto, of which nothing may reach the trainer
    whole = {"recipe": recipe, "against": None, "resume": None, "output_dir": None}
    return dataclasses.replace(config, trainer=trainer, data=data, **whole)


def _benchmark(config: RunConfig, recipe: str, folder: RunFolder, sides: dict[str, Any]) -> dict[str, Any]:
    """What ``benchmark.json`` holds."""
    trainer = config.trainer
    return {
        "recipe": recipe,
        "model": config.model.path or config.model.architecture,
        "weights": config.model.weights,
        "quantization": config.quantization,
        "lora": config.lora,
        "batch": trainer.get("per_device_train_batch_size", 8),
        "gradient_accumulation_steps": trainer.get("gradient_accumulation_steps", 1),
        "max_length": trainer.get("max_length"),
        "benchmark": dataclasses.asdict(config.benchmark),
        "precision": folder.record["precision"],
        **{name: folder.record[name] for name in ("started", "device", "packages", "git")},
        "sides": sides,
    }


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train one side and return what was measured of it."""
    from runner.benchmark.flops import matmul_rate
    from runner.benchmark.meter import Meter
    from runner.benchmark.peers import peer_trainer, shown_flags
    from runner.models.model import choose_precision, device

    config, objective = RunConfig.of(job["config"]), OBJECTIVES[job["recipe"]]
    settings, precision = config.benchmark, choose_precision(config)
    rate, took = matmul_rate(precision.autocast or precision.dtype, device())
    scored_before = bool(config.trainer.get("precompute_ref_log_probs"))
    reference = objective.reference and not scored_before
    meter = Meter(settings.warmup, settings.steps, reference, left_out=took)
    if job["side"] == OURS:
        trainer = _train_ours(config, objective, Path(job["work"]), meter)
    else:
        trainer = peer_trainer(job["side"], config, load_for_trl(Path(job["rows"])), Path(job["work"]))
        meter.attach(trainer)
        trainer.train()
    return {"matmul_flops_per_second": rate, **meter.result(), "flags": shown_flags(trainer)}


def _train_ours(config: RunConfig, objective: Objective, work: Path, meter: Any) -> Any:
    """Train as ``recipe=sft`` and the others do, and stop where they would save; returns the trainer."""
    made: list[Any] = []

    def build(*args: Any, **more: Any) -> Any:
        trainer = objective.trainer()(*args, **more)
        meter.attach(trainer)
        made.append(trainer)
        training = trainer.train

        def train_only(*words: Any, **named: Any) -> NoReturn:
            training(*words, **named)
            raise _Measured

        trainer.train = train_only
        return trainer

    from recipes.run import quiet_libraries

    quiet_libraries()
    environment.keep_freed_memory()
    path = work / "run"
    path.mkdir()
    folder = RunFolder(path, "", [], to_yaml(config), config.seed)
    try:
        train(config, folder, dataclasses.replace(objective, trainer=lambda: build))
    except _Measured:
        return made[-1]
    raise RunnerError("the trainer was not called")


def main(file: Path) -> int:
    """The process of a side: its job is in a file, and so is what it leaves."""
    job = json.loads(file.read_text(encoding="utf-8"))
    try:
        write_result(job, run_job(job))
    except Exception as raised:
        sys.stderr.write(masked(traceback.format_exc()))
        write_result(job, {"error": reason(explained(raised, RunConfig.of(job["config"])))})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
