"""The README's table of solo speed: the runner's training step against TRL's, cell by cell.

    python benchmarks/speed.py --out results --alpaca alpaca_rows.json
    python benchmarks/speed.py --out results --cells 4b-nf4-1x512,4b-nf4-4x2048 --against trl,trl-liger

Each cell is one `python -m runner recipe=benchmark`: random weights at the true shape, LoRA r=16 on all
linear layers, no gradient checkpointing, rows of exactly the cell's length, or real ones. TRL has no fp8
base: that cell stands beside TRL's of the same shape over NF4. OUT gets a run folder and a log of each cell,
speed.json and speed.md; a cell that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "transformers", "peft", "trl", "liger-kernel", "unsloth", "bitsandbytes")
_REAL_STEPS = 3  # times as many steps where rows differ in length


@dataclass(frozen=True)
class Cell:
    """A line of the table: batches of ``batch`` rows of ``length`` tokens, of real rows if that is None."""

    model: str
    quantization: str
    batch: int
    length: int | None

    @property
    def name(self) -> str:
        """How ``--cells`` and the folders call it."""
        size = f"{self.batch}x{self.length}" if self.length else f"{self.batch}-alpaca"
        return f"{self.model.removeprefix('qwen3-')}-{self.base}-{size}"

    @property
    def base(self) -> str:
        """The number format of the frozen weights."""
        return "bf16" if self.quantization == "none" else self.quantization

    @property
    def title(self) -> str:
        """Model, base weights, batch and length."""
        size = f"{self.batch}x{self.length}" if self.length else f"batch {self.batch}, Alpaca rows"
        return f"{self.model.replace('qwen', 'Qwen').replace('b', 'B')} {self.base} {size}"


CELLS = (
    Cell("qwen3-1.7b", "nf4", 1, 512),
    Cell("qwen3-0.6b", "none", 1, 512),
    Cell("qwen3-4b", "nf4", 1, 512),
    Cell("qwen3-4b", "nf4", 4, 512),
    Cell("qwen3-4b", "nf4", 4, 2048),
    Cell("qwen3-4b", "fp8", 4, 2048),
    Cell("qwen3-8b", "none", 2, 4096),
    Cell("qwen3-1.7b", "nf4", 8, None),
)


def main(argv: list[str] | None = None) -> int:
    """Measure the chosen cells and print the table; 1 when a cell has no measurement."""
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for cell in options.cells:
        found[cell.name] = _measure(cell, options)
        (options.out / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "speed.md").write_text(markdown(options.cells, found))
    print("\n" + markdown(options.cells, found))
    return int(any("error" in result for result in found.values()))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {cell.name: cell for cell in CELLS}
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cells", default=",".join(known), help="some of %(default)s (default: all)")
    parser.add_argument("--alpaca", type=Path, help="file of real rows; without it that cell is left out")
    parser.add_argument("--against", default="trl,trl-liger", help="the peers (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="measured steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=4, help="steps left out before (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds a cell may take (%(default)s)")
    parser.add_argument("--model-override", choices=["tiny"], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further overrides of every cell, such as speed=plain")
    options = parser.parse_args(argv)
    names = list(dict.fromkeys(options.cells.split(",")))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--cells: {', '.join(unknown)} is none of {', '.join(known)}")
    if options.alpaca is not None and not options.alpaca.is_file():
        parser.error(f"--alpaca: there is no file {options.alpaca}")
    options.cells = [known[name] for name in names if known[name].length or options.alpaca]
    return options


def _measure(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """The ``benchmark.json`` of a cell, or its error; a line says what came of it."""
    folder, log = options.out / cell.name, options.out / f"{cell.name}.log"
    file = folder / "benchmark.json"
    if not file.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a start that failed
        print(f"{cell.title} ...", flush=True)
        command = [
            sys.executable,
            "-m",
            "runner",
            *_overrides(cell, options),
            f"output_dir={folder.resolve()}",
        ]
        found = os.environ.get("PYTHONPATH")
        paths = os.pathsep.join([str(ROOT), *([found] if found else [])])
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths}
            )
            try:
                process.wait(options.limit)
            except subprocess.TimeoutExpired:
                process.terminate()  # which ends the side that runs, too
                process.wait()
                return {"error": f"ended after {options.limit:g} s, the limit"}
    if not file.is_file():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return {"error": " ".join(lines[-4:])}
    return json.loads(file.read_text())


def _overrides(cell: Cell, options: argparse.Namespace) -> list[str]:
    """The recipe's overrides of a cell."""
    more = 1 if cell.length else _REAL_STEPS
    rows = [f"benchmark.length={cell.length}"]
    if not cell.length:
        rows = ["data=file", f"data.path={options.alpaca.resolve()}"]
    small = options.model_override
    return [
        "recipe=benchmark",
        f"model={small or cell.model}",
        "model.weights=random",
        f"quantization={'none' if small else cell.quantization}",
        "lora=r16",
        f"trainer.per_device_train_batch_size={cell.batch}",
        *rows,
        f"benchmark.steps={options.steps * more}",
        f"benchmark.warmup={options.warmup * more}",
        *([f"against=[{options.against}]"] if options.against and cell.quantization != "fp8" else []),
        *options.overrides,
    ]


def markdown(cells: list[Cell], found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the cells measured so far, under when, on what and with what it was measured."""
    measured = [result for result in found.values() if "error" not in result]
    peers = list(dict.fromkeys(name for result in measured for name in result["sides"] if name != "runner"))
    titles = [
        "cell",
        *peers,
        "runner",
        "against the best",
        "MFU",
        "step",
        "peak memory, runner / best",
        "start-up",
    ]
    lines = [*_place(measured), "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    problems = []
    for cell in cells:
        result = found.get(cell.name)
        if result is None:
            continue
        if "error" in result:
            problems.append(f"- {cell.title}: {result['error']}")
            continue
        title, sides = cell.title, result["sides"]
        alike = found.get(dataclasses.replace(cell, quantization="nf4").name, {})
        if cell.quantization == "fp8" and "sides" in alike:
            title, sides = f"{title} (others: nf4)", {**alike["sides"], "runner": sides["runner"]}
        lines.append(f"| {' | '.join([title, *_line(sides, peers)])} |")
        errors = {name: side["error"] for name, side in result["sides"].items() if "error" in side}
        problems += [f"- {cell.title}, {name}: {reason}" for name, reason in errors.items()]
    return "\n".join([*lines, *([""] if problems else []), *problems]) + "\n"


def _line(sides: Mapping[str, Any], peers: list[str]) -> list[str]:
    """The figures of a cell: real tokens/s of every side, and ours beside the fastest of the others."""
    good = {name: side for name, side in sides.items() if "error" not in side}
    speeds = [
        f"{good[name]['tokens_per_second']:,.0f}" if name in good else "failed" if name in sides else ""
        for name in (*peers, "runner")
    ]
    own = good.get("runner")
    others = [side for name, side in good.items() if name != "runner"]
    best = max(others, key=lambda side: side["tokens_per_second"], default=None)
    if own is None:
        return [*speeds, "", "", "", "", ""]
    ratio = f"{own['tokens_per_second'] / best['tokens_per_second']:.2f}x" if best else ""
    share = "" if own["mfu"] is None else f"{own['mfu']:.0%}"
    memory = " / ".join(f"{_peak(side):.1f}" for side in (own, best) if side) + " GiB"
    return [*speeds, ratio, share, f"{own['step_ms']:,.0f} ms", memory, f"{own['startup_seconds']:.0f} s"]


def _peak(side: Mapping[str, Any]) -> float:
    """GiB that the allocator held, of which CUDA graphs' pools are a part; on a CPU the process."""
    return (side.get("peak_reserved_bytes") or side["peak_rss_bytes"]) / 2**30


def _place(measured: list[Mapping[str, Any]]) -> list[str]:
    """Date, card, versions and the peers' flags, which all cells share."""
    if not measured:
        return []
    first = measured[0]
    versions = [f"{name} {first['packages'][name]}" for name in _PACKAGES if name in first["packages"]]
    lines = [f"{first['started'][:10]}, {first['device']['name']}, {', '.join(versions)}; real tokens/s."]
    flags: dict[str, str] = {}
    for result in measured:
        for name, side in result["sides"].items():
            if name != "runner" and "flags" in side:
                flags[name] = ", ".join(f"{key}={value}" for key, value in side["flags"].items() if value)
    return [*lines, *(f"{name}: {text}." for name, text in flags.items())]


if __name__ == "__main__":
    sys.exit(main())
