"""What several GPUs gain one run: step and peak of each engine of `parallel`, beside one GPU and each other.

    python benchmarks/several_gpus.py --out results                      # on all GPUs of this machine
    python benchmarks/several_gpus.py --out results --cells 4b-nf4-4x2048 --sides none,ddp

Each side is one `python -m runner`: random weights at the true shape, LoRA r=16 on all linear layers or every
weight (`full`; `zero2` and `zero3` want DeepSpeed), rows of exactly the cell's length, as many rows a step on
one GPU as on all. OUT gets a run folder and a log of each, several_gpus.json and several_gpus.md; a side that
is there already is not measured again. The gain of a sweep is measured by `sweep_against_trl.py --devices`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import logged_steps, steady_step, write_rows

from runner.benchmark.rows import random_words
from runner.core.process.cuda_devices import cuda_devices

ROOT = Path(__file__).resolve().parents[1]
_CHECKPOINTS = "trainer.gradient_checkpointing=true"


@dataclass(frozen=True)
class Cell:
    """A model with ``batch`` rows of ``length`` tokens a GPU, trained under each of the ``sides``: engines
    of conf/parallel."""

    model: str
    quantization: str
    batch: int
    length: int
    sides: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    lora: str = "r16"

    @property
    def name(self) -> str:
        """How ``--cells`` and the folders call it."""
        base = "bf16" if self.quantization == "none" else self.quantization
        base = "full" if self.lora == "none" else base
        return f"{self.model.removeprefix('qwen3-')}-{base}-{self.batch}x{self.length}"


CELLS = (
    Cell("qwen3-0.6b", "nf4", 2, 512, ("none", "ddp", "fsdp2")),
    Cell("qwen3-1.7b", "nf4", 1, 512, ("none", "ddp")),
    Cell("qwen3-4b", "nf4", 4, 2048, ("none", "ddp")),
    Cell("qwen3-8b", "nf4", 1, 2048, ("ddp", "fsdp2"), (_CHECKPOINTS,)),
    Cell("qwen3-8b", "fp8", 1, 2048, ("ddp", "fsdp2"), (_CHECKPOINTS,)),
    Cell("qwen3-32b", "nf4", 1, 2048, ("fsdp2",), (_CHECKPOINTS,)),
    Cell("qwen3-1.7b", "none", 1, 1024, ("ddp", "zero2", "zero3"), (_CHECKPOINTS,), lora="none"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure the chosen sides and print the table; 1 when one has no measurement."""
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for cell in options.cells:
        for side in [side for side in cell.sides if side in options.sides]:
            _measure(cell, side, options)
    files = {(cell, side): _file(options.out, cell, side) for cell in CELLS for side in cell.sides}
    found = {key: json.loads(file.read_text()) for key, file in files.items() if file.is_file()}
    (options.out / "several_gpus.md").write_text(markdown(found))
    print("\n" + markdown(found))
    return int(any("error" in result for result in found.values()))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known, sides = {cell.name: cell for cell in CELLS}, ("none", "ddp", "fsdp2", "zero2", "zero3")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cells", default=",".join(known), help="some of %(default)s (default: all)")
    parser.add_argument("--sides", default=",".join(sides), help="some of %(default)s (default: all)")
    parser.add_argument("--processes", type=int, help="of a shared run (default: one for each GPU)")
    parser.add_argument("--steps", type=int, default=30, help="of every run (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=10, help="first steps left out (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds a side may take (%(default)s)")
    parser.add_argument("--model-override", choices=["tiny"], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further overrides of every run, such as speed=plain")
    options = parser.parse_args(argv)
    options.cells, options.sides = options.cells.split(","), options.sides.split(",")
    for option, given, allowed in (("cells", options.cells, known), ("sides", options.sides, sides)):
        if unknown := [name for name in given if name not in allowed]:
            parser.error(f"--{option}: {', '.join(unknown)} is none of {', '.join(allowed)}")
    options.cells = [known[name] for name in dict.fromkeys(options.cells)]
    options.processes = options.processes or len(cuda_devices())
    if options.processes < 2:
        parser.error(f"{options.processes} GPUs here: --processes 2 shares the cores of a CPU")
    return options


def _file(out: Path, cell: Cell, side: str) -> Path:
    return out / f"{cell.name}-{side}.json"


def _measure(cell: Cell, side: str, options: argparse.Namespace) -> None:
    """Leave the file of a side, and say in a line what came of it."""
    file = _file(options.out, cell, side)
    if file.is_file():
        return
    log, folder = file.with_suffix(".log"), file.with_suffix("")
    print(f"{cell.name} {side} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # of a start that failed
    with tempfile.TemporaryDirectory(prefix="several-gpus-") as name, log.open("wb") as stream:
        command = [sys.executable, "-m", "runner", *_words(cell, side, options, Path(name))]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            code = subprocess.run(
                [*command, f"output_dir={folder.resolve()}"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths},
                timeout=options.limit,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    found = _read(folder, options) if code == 0 else {"error": _reason(code, log, options.limit)}
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"  {found['error'] if 'error' in found else _line(found)}", flush=True)


def _words(cell: Cell, side: str, options: argparse.Namespace, work: Path) -> list[str]:
    rows = options.steps * cell.batch * options.processes
    write_rows(work / "rows.jsonl", ({"text": random_words(cell.length, seed)} for seed in range(rows)))
    shared = [] if side == "none" else [f"parallel.num_processes={options.processes}"]
    return [
        f"model={options.model_override or cell.model}",
        "model.weights=random",
        f"quantization={'none' if options.model_override else cell.quantization}",
        f"lora={cell.lora}",
        "data=text",
        f"data.path={work / 'rows.jsonl'}",
        "generation.samples=0",
        "data.metric=null",
        f"parallel={side}",
        *shared,
        f"trainer.max_steps={options.steps}",
        f"trainer.per_device_train_batch_size={cell.batch}",
        f"trainer.gradient_accumulation_steps={options.processes}",
        f"trainer.max_length={32 if options.model_override else cell.length}",
        "trainer.logging_steps=1",
        'trainer.eval_strategy="no"',
        'trainer.save_strategy="no"',
        *cell.overrides,
        *options.overrides,
    ]


def _reason(code: int | None, log: Path, limit: float) -> str:
    if code is None:
        return f"ended after {limit:g} s, the limit"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit code {code}: {' '.join(lines[-3:])[-400:]}"


def _read(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    record = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    step = steady_step(logged_steps(folder), options.warmup)
    return {
        "step_seconds": step,
        "tokens_per_second": record["metrics"]["tokens"] / record["metrics"]["steps"] / step,
        "peak_memory_bytes": record["metrics"]["peak_memory_bytes"],
        "losses": [line["loss"] for line in lines if "loss" in line],
        "rows_a_step": record["parallel"]["rows_a_step"],
        "processes": record["parallel"]["processes"],
        **{name: record[name] for name in ("times", "device", "packages", "speed")},
    }


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['tokens_per_second']:,.0f} tokens/s   step {1000 * found['step_seconds']:,.1f} ms   "
        f"peak {found['peak_memory_bytes'] / 2**30:.2f} GiB   loss {found['losses'][-1]:.4f}"
    )


def markdown(found: dict[tuple[Cell, str], dict[str, Any]]) -> str:
    """A line a side; a cell's first one is what speed, peak and losses of the others are compared with."""
    lines = [
        "| a GPU | engine | GPUs | step | tokens/s | | peak GiB a GPU | | losses differ by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first: dict[Cell, dict[str, Any]] = {}
    problems = []
    for (cell, side), result in found.items():
        if "error" in result:
            problems.append(f"- {cell.name} {side}: {result['error']}")
            continue
        base = first.setdefault(cell, result)
        speed = result["tokens_per_second"] / base["tokens_per_second"]
        memory = result["peak_memory_bytes"] / base["peak_memory_bytes"]
        far = max(abs(a - b) for a, b in zip(result["losses"], base["losses"], strict=True))
        compared = ("", "", "") if result is base else (f"{speed:.2f}x", f"{memory:.2f}x", f"{far:.1e}")
        lines.append(
            f"| {cell.name} | {side} | {result['processes']} | {1000 * result['step_seconds']:,.1f} ms "
            f"| {result['tokens_per_second']:,.0f} | {compared[0]} "
            f"| {result['peak_memory_bytes'] / 2**30:.2f} | {compared[1]} | {compared[2]} |"
        )
    return "\n".join([*lines, *([""] if problems else []), *problems]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
