"""The report of a sweep: one self-contained HTML page over all of its cells, written at any time."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from runner.config.adapters import CONFIG_FILE
from runner.core.atomic import write_atomically
from runner.core.hydra_quoting import typed_override
from runner.core.metric_names import find_metric
from runner.reports.curves import curves_context
from runner.reports.labels import cell_label, label, short_names
from runner.reports.leaderboard import Leaderboard, Row, leaderboard
from runner.reports.number_format import flatten, format_value
from runner.reports.results import CellResult, Sweep, mapping, read_lines
from runner.reports.run_report import MAX_SAMPLES, OPEN_SAMPLES, OUTCOMES, page_environment
from runner.reports.table import score_text
from runner.reports.views import TONES, board_view, heatmaps_view, importance_view, parallel_view

# Recipes whose adapters and models write no text.
_WITHOUT_CHAT = ("classify", "reward")


def write_sweep_report(folder: Path, board: Leaderboard | None = None) -> Path:
    """Write ``folder/report.html`` from what the sweep folder holds and return its path.

    ``board`` saves reading and comparing the cells again, where that was just done.
    """
    context = sweep_context(board or leaderboard(folder))
    page = page_environment().get_template("sweep.html.j2").render(context)
    write_atomically(folder / "report.html", page.encode("utf-8", "backslashreplace").decode("utf-8"))
    return folder / "report.html"


def sweep_context(board: Leaderboard) -> dict[str, Any]:
    """Gather what the page shows; every file of the sweep may be missing or cut short."""
    sweep = board.sweep
    names = short_names(sweep.axes)
    effects = importance_view(board)
    foremost = effects["axes"][0] if effects and effects["axes"] else ""
    best = board.best_cell
    source = best or next((cell for cell in sweep.cells if cell.record), None)
    script = (Path(__file__).parent / "sweep.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "script": Markup(script),  # our own file, whose digest is all that the page's policy lets run
        "script_digest": digest,
        "sweep": sweep,
        "record": sweep.record,
        "heading": " × ".join(names.values()) or sweep.folder.resolve().name,
        "model": _model(source),
        "recipe": mapping(source.config).get("recipe") if source else None,
        "counts": [(status, count, TONES.get(status, "")) for status, count in sweep.counts().items()],
        "tone": TONES.get(str(sweep.record.get("status")), ""),
        "answer": _answer(board),
        "command": use_command(board),
        "board": board_view(board),
        "losses": curves_context(board, foremost),
        "heatmaps": heatmaps_view(board),
        "parallel": parallel_view(board),
        "importance": effects,
        "samples": _samples(best),
        "sample_limits": (OPEN_SAMPLES, MAX_SAMPLES),
        "failures": _failures(sweep),
        "dropped": [
            (cell_label(cell, names), cell.reason) for cell in sweep.cells if cell.status == "dropped"
        ],
        "jobs": _jobs(sweep),
        "settings": flatten(sweep.settings),
        "axes": [(axis, ", ".join(values)) for axis, values in sweep.axes.items()],
        "best_config": _read(best.folder / "config.yaml") if best else "",
        "best_name": best.name if best else "",
        "environment": _environment(sweep, source),
        "notes": sweep.notes,
    }


def use_command(board: Leaderboard) -> str:
    """The command that chats with the best cell, with its adapter or its whole model; empty where it has left
    none that writes text."""
    best = board.best_cell
    if best is None or best.config.get("recipe") in _WITHOUT_CHAT:
        return ""
    if (best.folder / "adapter" / CONFIG_FILE).is_file():
        source = typed_override("adapter", str(board.sweep.folder))
    elif (best.folder / "model" / "config.json").is_file():
        source = typed_override("model.path", str(best.folder / "model"))
    else:
        return ""
    return f"python -m runner recipe=chat {source}"


def _answer(board: Leaderboard) -> dict[str, Any]:
    """The sentence on top, in parts: what is best, how good it is, and what else may be as good."""
    names = short_names(board.sweep.axes)
    counts = board.sweep.counts()
    open_cells = counts.get("running", 0) + counts.get("waiting", 0)
    if not board.ranked:
        statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
        why = f"No cell has a result{' yet' if open_cells else ''}" + (f": {statuses}." if statuses else ".")
        if board.sweep.unranked:
            why = f"{board.sweep.unranked[:1].upper()}{board.sweep.unranked[1:]}."
        elif counts.get("completed"):
            why = f"No completed cell has a finite {board.metric}: {statuses}."
        return {"best": "", "nothing": why}
    first, *others = board.ranked
    scores = [
        (find_metric(name).label, score_text(first.scores.get(name), name)) for name in board.scores[:2]
    ]
    return {
        "best": label(first.values, names) or first.group,
        "so_far": bool(open_cells),
        "open": open_cells,
        "scores": [(name, text.replace(" ", "\N{NO-BREAK SPACE}")) for name, text in scores if text != "–"],
        "n": first.scores[board.metric].n,
        "noise": _noise(board, others),
    }


def _noise(board: Leaderboard, others: list[Row]) -> str:
    """How many of the others are as good as the best, as a sentence."""
    names = short_names(board.sweep.axes)
    near = [row for row in others if row.noise and row.noise.within]
    unknown = sum(row.noise is None or row.noise.within is None for row in others)
    if not others:
        return "It is the only one with a result, so there is nothing to compare it with."
    if unknown == len(others):
        reason = board.method.removeprefix("unknown: ")
        return f"Whether any other is as good is not known: {reason}."
    rest = f" Of {unknown} it is not known." if unknown else ""
    if near:
        which = "; ".join(label(row.values, names) or row.group for row in near[:4])
        which += f"; and {len(near) - 4} more" if len(near) > 4 else ""
        are = "is" if len(near) == 1 else "are"
        return f"{len(near)} of {len(others)} others {are} within noise of it: {which}.{rest}"
    if unknown:
        return f"{len(others) - unknown} of {len(others)} others are worse by more than noise.{rest}"
    return f"{'Each' if len(others) > 1 else 'The'} other is worse by more than noise."


def _samples(best: CellResult | None) -> list[tuple[dict[str, Any], Any]]:
    samples = read_lines(best.folder / "samples.jsonl") if best else []
    pairs = [
        tuple(
            sample.get(key) if isinstance(sample.get(key), bool) else None
            for key in ("before_match", "after_match")
        )
        for sample in samples
    ]
    return [(sample, OUTCOMES.get(pair)) for sample, pair in zip(samples, pairs, strict=True)]


def _failures(sweep: Sweep) -> list[dict[str, Any]]:
    """Cells that failed, diverged or were preempted, those with the same error together."""
    names = short_names(sweep.axes)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cell in sweep.cells:
        if cell.status not in ("failed", "diverged", "preempted"):
            continue
        error = cell.error
        kind, message = str(error.get("type") or ""), str(error.get("message") or cell.recorded_reason)
        entry = found.setdefault(
            (cell.status, kind, message),
            {
                "status": cell.status,
                "type": kind,
                "message": message,
                "cells": [],
                "tone": TONES[cell.status],
            },
        )
        entry.setdefault("traceback", error.get("traceback"))
        entry["cells"].append((cell_label(cell, names), cell.last_step, cell.name))
    return list(found.values())


def _jobs(sweep: Sweep) -> list[dict[str, Any]]:
    """What trained together, how fast the whole was, and why a cell ran alone."""
    by_name = {cell.name: cell for cell in sweep.cells}
    rows = []
    for job in sweep.jobs:
        cells = [by_name[name] for name in job["cells"] if name in by_name]
        speeds = [cell.metric("pack_tokens_per_second") for cell in cells]
        speeds = [speed for speed in speeds if speed > 0] or [
            cell.metric("tokens_per_second") for cell in cells[:1] if cell.metric("tokens_per_second") > 0
        ]
        memory = [cell.metric("peak_memory_bytes") for cell in cells if cell.metric("peak_memory_bytes") > 0]
        log = f"jobs/{job['name']}.log"
        rows.append(
            {
                "name": job["name"],
                "cells": len(job["cells"]),
                "alone": job.get("alone") or "",
                "speed": f"{max(speeds):,.0f}" if speeds else "–",
                "memory": format_value(max(memory), "memory_bytes") if memory else "–",
                "seconds": format_value(
                    next((c.record.get("seconds") for c in cells if c.record), None), "seconds"
                ),
                "log": quote(log) if (sweep.folder / log).is_file() else "",
            }
        )
    return rows


def _model(cell: CellResult | None) -> str:
    """The short name of the model that the cells share."""
    if cell is None:
        return ""
    model = mapping(cell.record.get("model")) or mapping(cell.config.get("model"))
    name = str(model.get("name") or model.get("path") or model.get("architecture") or "")
    quantised = mapping(model.get("quantization")).get("name")
    return name.partition("#")[0].rstrip("/").split("/")[-1] + (f" in {quantised}" if quantised else "")


def _environment(sweep: Sweep, source: CellResult | None) -> dict[str, Any]:
    """Device, source, packages and data of one cell, and which of them other cells do not share."""
    if source is None:
        return {}
    parts = {"Device": "device", "Source": "git", "Packages": "packages", "Data": "data"}
    shown = [(title, flatten(mapping(source.record.get(key)))) for title, key in parts.items()]
    records = [cell.record for cell in sweep.cells if cell.record]
    varied = [
        title.lower()
        for title, key in parts.items()
        if key != "data" and any(record.get(key) != source.record.get(key) for record in records)
    ]
    return {"parts": [(title, rows) for title, rows in shown if rows], "varied": varied, "name": source.name}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
