"""A sweep over learning rates: packed, against TRL and against the runner's own command, run by run.

    python benchmarks/sweep_against_trl.py --out results
    python benchmarks/sweep_against_trl.py --out results --rows 1.7b-1x512,8b-1x512 --sides trl,packed
    python benchmarks/sweep_against_trl.py --out results --rows 4b-1x512 --break-even
    python benchmarks/sweep_against_trl.py --out results --rows 1.7b-1x512 --devices 1,2 --steps 500

Of each row (model, batch x length, cells) three sides, each in a process of its own on one GPU: `trl`, one
run of TRL's SFTTrainer; `solo`, one run of `python -m runner`; `packed`, all cells with `python -m runner
-m`; with --devices instead `packed` alone, on so many GPUs. Same rows, random weights at the true shape,
LoRA r=16 on all linear layers, no gradient checkpointing.
The sweep run by run is N x one measured run. OUT gets ROW.json with the metrics, ROW-SIDE.log and table.md;
what is there of other rows and sides is kept, so that the table can be made in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweep_sides import Settings, measure, train_trl
from sweep_table import SIDES, Row, markdown, tokens_per_second, worked

ROWS = (
    Row("qwen3-1.7b", "nf4", 1, 512, 16),
    Row("qwen3-4b", "nf4", 1, 512, 8),
    Row("qwen3-8b", "nf4", 1, 512, 8),
    Row("qwen3-0.6b", "none", 1, 512, 16),
    Row("qwen3-4b", "nf4", 4, 512, 8),
    Row("qwen3-4b", "nf4", 4, 2048, 4),
)
BREAK_EVEN = (1, 2, 4, 8)  # cells in a pack


def main(argv: list[str] | None = None) -> int:
    """Measure the chosen sides of the chosen rows and write the table; 1 when a side failed."""
    options = _options(argv)
    if options.trl:
        train_trl(options.trl)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the side that runs is ended too
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    if not options.only_table:
        for row in options.rows:
            mode = _break_even if options.break_even else _on_devices if options.devices else _compare
            failed += mode(row, options)
    print("\n" + _write_table(options))
    return int(failed > 0)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(row.name for row in ROWS)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--rows", default=names, help=f"some of {names} (default: all)")
    parser.add_argument("--sides", default=",".join(SIDES), help="some of %(default)s (default: all)")
    parser.add_argument("--cells", type=int, help="cells in the pack, instead of the row's own number")
    parser.add_argument("--steps", type=int, default=20, help="of every run (default: %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=6, help="first steps left out of the speed (%(default)s)"
    )
    parser.add_argument("--held-out", type=int, default=8, help="rows evaluated after training (%(default)s)")
    parser.add_argument("--wall-steps", type=int, default=500, help="steps to extrapolate to (%(default)s)")
    parser.add_argument("--limit", type=float, default=240, help="seconds a side may take (%(default)s)")
    parser.add_argument("--generation", choices=["off", "on"], default="off", help="answers to held-out rows")
    parser.add_argument(
        "--break-even", action="store_true", help=f"instead: packs of {BREAK_EVEN} cells, up to --cells"
    )
    parser.add_argument(
        "--devices", help="instead: the packed side on so many GPUs each (without any: workers), as 1,2"
    )
    parser.add_argument("--only-table", action="store_true", help="run nothing, write table.md again")
    parser.add_argument("--model-override", choices=["tiny"], help=argparse.SUPPRESS)
    parser.add_argument("--trl", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further ones of the runner, as speed.cuda_graphs=false")
    options = parser.parse_args(argv)
    if options.trl:
        return options
    if options.out is None:
        parser.error("--out is needed")
    if options.steps < options.warmup + 2:
        parser.error(f"--steps {options.steps}: at least 2 more than --warmup {options.warmup}")
    known = {row.name: row for row in ROWS}
    for option, given, allowed in (("--rows", options.rows, known), ("--sides", options.sides, SIDES)):
        if unknown := [name for name in given.split(",") if name not in allowed]:
            parser.error(f"{option}: {', '.join(unknown)} is none of {', '.join(allowed)}")
    numbers = (options.devices or "").split(",") if options.devices else []
    if wrong := [text for text in numbers if not text.isdigit() or int(text) < 1]:
        parser.error(f"--devices {options.devices}: {wrong[0]!r} is no number of devices, as in 1,2")
    options.devices = sorted(set(map(int, numbers)))
    options.sides = [side for side in SIDES if side in options.sides.split(",")]
    options.rows = [known[name] for name in dict.fromkeys(options.rows.split(","))]
    if options.model_override:
        small = {"model": options.model_override, "quantization": "none", "length": 32}
        options.rows = [dataclasses.replace(row, **small) for row in options.rows]
        options.rows = list({row.name: row for row in options.rows}.values())
    options.settings = Settings(
        options.steps, options.warmup, options.held_out, options.generation == "on", tuple(options.overrides)
    )
    return options


def _compare(row: Row, options: argparse.Namespace) -> int:
    """Measure the sides of a row; how many failed."""
    if options.cells:
        row = dataclasses.replace(row, cells=options.cells)
    record, failed = _record(row, options), 0
    for side in options.sides:
        result = _side(side, row, options, f"{row.name}-{side}")
        record["sides"][side] = result
        failed += not worked(result)
        _keep(record, row, options)
    return failed


def _break_even(row: Row, options: argparse.Namespace) -> int:
    """Measure packs of rising size; a single cell is the solo side, which may be there already."""
    record, failed = _record(row, options), 0
    with tempfile.TemporaryDirectory(prefix="sweep-against-trl-") as caches:
        for cells in _counts(options.cells):
            sized, side = dataclasses.replace(row, cells=cells), "solo" if cells == 1 else "packed"
            result = record["sides"].get(side)
            if not (worked(result) and result["cells"] == cells):
                name = f"{row.name}-{side}-{cells}"
                result = _side(side, sized, options, name, Path(caches))
            record["break_even"][str(cells)] = result
            failed += not worked(result)
            _keep(record, row, options)
    return failed


def _on_devices(row: Row, options: argparse.Namespace) -> int:
    """Measure the whole sweep on rising numbers of devices, none with compiled code from before."""
    if options.cells:
        row = dataclasses.replace(row, cells=options.cells)
    record, failed = _record(row, options), 0
    for devices in options.devices:
        result = _side("packed", row, options, f"{row.name}-packed-on-{devices}", devices=devices)
        record.setdefault("devices", {})[str(devices)] = result
        failed += not worked(result)
        _keep(record, row, options)
    return failed


def _counts(most: int | None) -> Iterator[int]:
    """How many cells the packs have."""
    yield from (cells for cells in BREAK_EVEN if cells <= (most or BREAK_EVEN[-1]))
    cells = 2 * BREAK_EVEN[-1]
    while cells <= (most or 0):
        yield cells
        cells *= 2


def _side(
    side: str,
    row: Row,
    options: argparse.Namespace,
    name: str,
    caches: Path | None = None,
    devices: int = 1,
) -> dict[str, Any]:
    """Measure one side, and say in one line what came of it."""
    cells, on = row.cells if side == "packed" else 1, f" on {devices}" if options.devices else ""
    print(f"{row.name:12} {side:6} {cells:2} cell{'s' * (cells > 1):1}{on}  ", end="", flush=True)
    began, log = time.monotonic(), options.out / f"{name}.log"
    result = measure(side, row, options.settings, options.limit, log, caches, devices)
    if worked(result):
        step, peak = 1000 * result["step_seconds"], result["peak_memory_bytes"] / 2**30
        print(
            f"{tokens_per_second(row, result):10,.0f} tokens/s   step {step:8.1f} ms   "
            f"wall {result['wall_seconds']:6.1f} s   peak {peak:6.2f} GiB"
        )
    else:
        last = result["tail"][-1] if result["tail"] else "no output"
        print(f"failed after {time.monotonic() - began:.1f} s: {result['error']}: {last[:100]}  ({log})")
    sys.stdout.flush()
    return result


def _record(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """What is known of a row with these settings so far."""
    settings = json.loads(json.dumps(dataclasses.asdict(options.settings)))  # as a file has them
    new = {"row": dataclasses.asdict(row), "settings": settings, "sides": {}, "break_even": {}}
    file = options.out / f"{row.name}.json"
    if not file.is_file():
        return new
    old = json.loads(file.read_text())
    alike = {**old["row"], "cells": row.cells} == new["row"] and old["settings"] == settings
    if not alike:
        print(f"{row.name:12} has results of other settings, which are replaced")
    return old | {"row": new["row"]} if alike else new


def _keep(record: dict[str, Any], row: Row, options: argparse.Namespace) -> None:
    """Write the record of a row, and the table, so that nothing measured is lost."""
    file = options.out / f"{row.name}.json"
    temporary = file.with_suffix(".writing")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(file)
    _write_table(options)


def _write_table(options: argparse.Namespace) -> str:
    """Write ``table.md`` over all rows that have results, and return it."""
    order = [row.name for row in ROWS]
    files = {file.stem: json.loads(file.read_text()) for file in options.out.glob("*.json")}
    names = sorted(files, key=lambda name: (order.index(name) if name in order else len(order), name))
    text = markdown([files[name] for name in names], options.wall_steps)
    (options.out / "table.md").write_text(text)
    return text


if __name__ == "__main__":
    sys.exit(main())
