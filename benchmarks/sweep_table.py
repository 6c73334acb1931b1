"""The arithmetic of ``sweep_against_trl.py``: from what each side measured to the lines of its table.

A result is a dictionary: ``cells`` trained by the process, ``step_seconds`` (the median steady step),
``wall_seconds`` of the process, ``steps``, ``peak_memory_bytes``; or ``error`` when the side failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIDES = ("trl", "solo", "packed")
NO_GAIN = 1.05  # below this ratio, more cells in a pack count as no gain
_HEAD = (
    "| row | metric | TRL | solo | packed | packed against TRL | packed against solo |\n" + "|---" * 7 + "|"
)

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the comparison: batches of ``batch`` rows of ``length`` tokens, ``cells`` packed."""

    model: str
    quantization: str
    batch: int
    length: int
    cells: int

    @property
    def name(self) -> str:
        """How ``--rows`` and the files call it."""
        return f"{self.model.removeprefix('qwen3-')}-{self.batch}x{self.length}"

    @property
    def title(self) -> str:
        """Model, base weights, batch and length."""
        base = "bf16" if self.quantization == "none" else self.quantization
        return f"{self.model} {base} {self.batch}x{self.length}"


def worked(result: Result | None) -> bool:
    """Whether there is a result, and no error."""
    return bool(result) and "error" not in (result or {})


def tokens_per_second(row: Row, result: Result) -> float:
    """Of all cells of the process together, in the steady state."""
    return result["cells"] * row.batch * row.length / result["step_seconds"]


def sweep_seconds(result: Result, cells: int, steps: int | None = None) -> float:
    """Seconds of a sweep of ``cells`` by as many processes like this one as it takes.

    With ``steps``, extrapolated: what a process took beside its steady steps, and that many of these.
    """
    seconds = result["wall_seconds"]
    if steps is not None:
        seconds += (steps - result["steps"]) * result["step_seconds"]
    return cells / result["cells"] * seconds


def markdown(records: Sequence[Mapping[str, Any]], wall_steps: int) -> str:
    """The tables of all rows: sides, then what more cells in a pack bring."""
    parts = ["# Packed sweeps against TRL, run by run\n"]
    compared = [record for record in records if record.get("sides")]
    if compared:
        lines = [line for record in compared for line in _compare(record, wall_steps)]
        parts.append("\n".join([_HEAD, *lines]) + "\n\n" + _legend(compared, wall_steps))
    parts += [_break_even(record) for record in records if record.get("break_even")]
    parts += [_on_devices(record, wall_steps) for record in records if record.get("devices")]
    failed = [line for record in records for line in _failures(record)]
    if failed:
        parts.append("## Failed\n\n" + "\n".join(failed) + "\n")
    return "\n".join(parts)


def _compare(record: Mapping[str, Any], wall_steps: int) -> Iterator[str]:
    """The lines of one row."""
    row, sides = Row(**record["row"]), {side: record["sides"].get(side) for side in SIDES}
    good = {side: result for side, result in sides.items() if result is not None and worked(result)}
    cells = good["packed"]["cells"] if "packed" in good else row.cells
    steps = record["settings"]["steps"]
    rates = {side: tokens_per_second(row, result) for side, result in good.items()}
    title = f"{row.title}, {cells} cells"
    yield _line(title, "tokens/s, steady state", sides, {s: f"{v:,.0f}" for s, v in rates.items()}, rates, 1)
    for label, ahead in (
        (f"wall time of the sweep, s, measured at {steps} steps", None),
        (f"wall time of the sweep, s, extrapolated to {wall_steps} steps", wall_steps),
    ):
        walls = {side: sweep_seconds(result, cells, ahead) for side, result in good.items()}
        texts = {side: _wall(seconds, cells, good[side]["cells"]) for side, seconds in walls.items()}
        yield _line("", label, sides, texts, walls, -1)
    peaks = {side: result["peak_memory_bytes"] / 2**30 for side, result in good.items()}
    yield _line("", "peak memory, GiB", sides, {s: f"{v:.2f}" for s, v in peaks.items()}, peaks, 0)


def _wall(seconds: float, cells: int, own: int) -> str:
    """A sweep's wall time, and how it was put together."""
    many = cells // own
    return f"{many} x {seconds / many:,.1f} = {seconds:,.1f}" if many > 1 else f"{seconds:,.1f}"


def _line(
    title: str,
    metric: str,
    sides: Mapping[str, Result | None],
    texts: Mapping[str, str],
    values: Mapping[str, float],
    better: int,
) -> str:
    """One line; the ratio is of speeds (``better`` 1), of times turned over (-1), or of sizes (0)."""
    cells = [texts.get(side, "failed" if sides[side] else "") for side in SIDES]
    ratios = []
    for other in ("trl", "solo"):
        if "packed" in values and other in values:
            ratio = values["packed"] / values[other]
            ratios.append(f"{1 / ratio if better < 0 else ratio:.2f}x" + ("" if better else " the memory"))
        else:
            ratios.append("")
    return "| " + " | ".join([title, metric, *cells, *ratios]) + " |"


def _legend(records: Sequence[Mapping[str, Any]], wall_steps: int) -> str:
    """How the metrics were measured, and on what."""
    settings = [record["settings"] for record in records]
    steps, warmup, held_out = (
        "/".join(dict.fromkeys(str(each[name]) for each in settings))
        for name in ("steps", "warmup", "held_out")
    )
    results = [r for record in records for r in record["sides"].values() if worked(r)]
    places = _places(results)
    answers = "held-out prompts are answered" if settings[-1]["generation"] else "no answers are generated"
    return (
        f"Steady state: the median step after {warmup} of {steps} steps; packed: all cells' tokens over it.\n"
        "Wall time: packed is its one command from start to exit with loading, compiling (no compiled code\n"
        "is kept from before), evaluation and saving. For TRL and solo, N x one measured run is used; TRL's\n"
        f"is from start to adapter saved. Every cell is evaluated on {held_out} held-out rows; {answers}.\n"
        f"Extrapolated, not measured: (wall - steps x steady step) + {wall_steps} x steady step, all sides.\n"
        "Ratios are of speed: above 1.00x packed is faster, or its sweep over sooner.\n"
        "Random weights at the true shape, LoRA r=16 on all linear layers, no gradient checkpointing.\n"
        f"{places}\n"
    )


def break_even(row: Row, results: Mapping[int, Result]) -> tuple[list[tuple[int, float, float, float]], str]:
    """Of packs of rising size: cells, tokens/s, ratio to one cell and to the pack before; and the verdict."""
    rates = [(cells, tokens_per_second(row, results[cells])) for cells in sorted(results)]
    lines, nothing = [], ""
    for number, (cells, rate) in enumerate(rates):
        before, earlier = rates[number - 1] if number else (cells, rate)
        lines.append((cells, rate, rate / rates[0][1], rate / earlier))
        if number and not nothing and rate < NO_GAIN * earlier:
            nothing = f"Packing gains nothing from {before} to {cells} cells (less than {NO_GAIN - 1:.0%})."
    if not nothing and len(rates) > 1:
        nothing = f"Packing gains up to {rates[-1][0]} cells, the most that were measured."
    return lines, nothing


def _break_even(record: Mapping[str, Any]) -> str:
    row = Row(**record["row"])
    good = {int(cells): result for cells, result in record["break_even"].items() if worked(result)}
    lines, verdict = break_even(row, good) if good else ([], "Nothing was measured.")
    first = lines[0][0] if lines else 1
    head = f"| cells | tokens/s, steady state | against {first} | against the line above | peak memory, GiB |"
    peaks = {cells: result["peak_memory_bytes"] / 2**30 for cells, result in good.items()}
    table = [
        f"| {cells} | {rate:,.0f} | {one:.2f}x | {above:.2f}x | {peaks[cells]:.2f} |"
        for cells, rate, one, above in lines
    ]
    parts = [f"## {row.title}: cells in a pack\n", head, "|---" * 5 + "|", *table, "", verdict]
    if 1 in good:
        parts.append("One cell is the command without -m, which is what a sweep of one cell runs.")
    return "\n".join(parts) + "\n"


def _on_devices(record: Mapping[str, Any], wall_steps: int) -> str:
    """The whole sweep on rising numbers of devices, against the first of them."""
    row, steps = Row(**record["row"]), record["settings"]["steps"]
    good = {int(count): result for count, result in record["devices"].items() if worked(result)}
    head = f"| devices | tokens/s, steady state | wall s, {steps} steps | | extrapolated to {wall_steps} | |"
    lines = []
    for count in sorted(good):
        result, first = good[count], good[min(good)]
        walls = [
            (sweep_seconds(each, each["cells"], ahead))
            for ahead in (None, wall_steps)
            for each in (result, first)
        ]
        rate = tokens_per_second(row, result)
        lines.append(
            f"| {count} | {rate:,.0f} | {walls[0]:,.1f} | {walls[1] / walls[0]:.2f}x "
            f"| {walls[2]:,.1f} | {walls[3] / walls[2]:.2f}x |"
        )
    title = f"## {row.title}: a sweep of {row.cells} cells over devices\n"
    place = f"One command each, from start to exit, no compiled code from before. {_places(good.values())}"
    return "\n".join([title, head, "|---" * 6 + "|", *lines, "", place]) + "\n"


def _places(results: Iterable[Result]) -> str:
    return "; ".join(dict.fromkeys(str(result["place"]) for result in results))


def _failures(record: Mapping[str, Any]) -> Iterator[str]:
    """Each failed side with the end of its log."""
    sides = {**record.get("sides", {})}
    sides |= {f"packed, {cells} cells": found for cells, found in record.get("break_even", {}).items()}
    sides |= {f"packed, on {count}": found for count, found in record.get("devices", {}).items()}
    for side, result in sides.items():
        if not worked(result):
            tail = "\n".join(f"    {line}" for line in result.get("tail", []))
            yield f"{Row(**record['row']).title}, {side}: {result['error']} ({result['log']})\n\n{tail}\n"
