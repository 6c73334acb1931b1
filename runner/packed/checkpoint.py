"""Checkpoints of a pack: all adapters by name, so that some of them can resume without the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from runner.core.atomic import json_text
from runner.packed.adapters import PackedAdapters
from runner.runs.checkpoint import all_of, verify

if TYPE_CHECKING:
    from runner.packed.cell import CellState

TENSORS, FACTS = "pack.safetensors", "pack.json"


def save(folder: Path, adapters: PackedAdapters, cells: list[CellState], unlogged: dict[str, Any]) -> None:
    """Write the adapters and the running totals of all cells.

    ``unlogged`` are the metrics since the last logged step: ``step``, ``passes``, and lists by cell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{cell.name}/{key}": value
        for index, cell in enumerate(cells)
        for key, value in adapters.state_dict(index).items()
    }
    save_file(tensors, folder / TENSORS)
    facts = {
        "rank": adapters.rank,
        "members": [
            {
                "name": m.name,
                "tokens": m.tokens,
                "total_loss": m.total_loss,
                "lines": m.lines(),
                "measured": m.measured,
                "scores": m.scores,
            }
            for m in cells
        ],
        "unlogged": unlogged,
    }
    (folder / FACTS).write_text(json_text(facts), encoding="utf-8")


def facts(folder: Path) -> dict[str, Any]:
    """``rank`` and ``members`` (name, tokens, total_loss, lines) of a checkpoint; empty when it is none."""
    file = folder / FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def newest(work: Path, names: list[str]) -> tuple[Path | None, list[str]]:
    """The latest intact checkpoint that holds all these cells, and what is wrong with newer ones."""
    damaged: list[str] = []
    for path in all_of(work / "checkpoints"):
        if reason := verify(path):
            damaged.append(f"{path} {reason}: it is passed over")
        elif {item["name"] for item in facts(path).get("members", [])} >= set(names):
            return path, damaged
    return None, damaged


def lines(folder: Path | None, name: str) -> int | None:
    """The number of lines in a cell's log at a checkpoint; None where that was not kept."""
    members = facts(folder)["members"] if folder else []
    return next((item.get("lines") for item in members if item["name"] == name), None)


def load(folder: Path, adapters: PackedAdapters, cells: list[CellState]) -> None:
    """Read back the adapters and totals of these cells, which the checkpoint must hold."""
    tensors = load_file(folder / TENSORS)
    saved = {item["name"]: item for item in facts(folder)["members"]}
    for index, cell in enumerate(cells):
        start = f"{cell.name}/"
        own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        adapters.load(index, own)
        cell.tokens, cell.total_loss = saved[cell.name]["tokens"], saved[cell.name]["total_loss"]
        cell.resumed_tokens, cell.moved = cell.tokens, True
        cell.measured, cell.scores = saved[cell.name].get("measured", 0), saved[cell.name].get("scores", {})


def load_states(folder: Path, cells: list[CellState], optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Read back the optimizer's and the scheduler's state of these cells; returns ``unlogged`` of them."""
    saved = facts(folder)
    names = [item["name"] for item in saved["members"]]
    chosen = [names.index(cell.name) for cell in cells]
    state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    groups = [state["param_groups"][index] for index in chosen]
    old = [group["params"][0] for group in groups]
    optimizer.load_state_dict(
        {
            "state": {
                new: state["state"][number] for new, number in enumerate(old) if number in state["state"]
            },
            "param_groups": [group | {"params": [new]} for new, group in enumerate(groups)],
        }
    )
    schedule = torch.load(folder / "scheduler.pt", weights_only=True)
    for name in ("base_lrs", "_last_lr", "lr_lambdas"):
        schedule[name] = [schedule[name][index] for index in chosen]
    scheduler.load_state_dict(schedule)
    own = {name: [values[index] for index in chosen] for name, values in saved["unlogged"]["figures"].items()}
    return saved["unlogged"] | {"figures": own}
