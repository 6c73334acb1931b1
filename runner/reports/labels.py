"""The words of a report: a cell by its axes, under short names, and what a difference is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runner.reports.results import CellResult


def short_names(axes: Iterable[str]) -> dict[str, str]:
    """Each axis by the last part of its key, or by its whole key where two would be called alike."""
    axes = list(axes)
    last = {axis: axis.rpartition(".")[2] for axis in axes}
    taken = list(last.values())
    return {axis: name if taken.count(name) == 1 else axis for axis, name in last.items()}


def label(values: Mapping[str, str], names: Mapping[str, str] | None = None) -> str:
    """The values of a cell in one line, ``r=8, learning_rate=1e-4``."""
    names = names or short_names(values)
    return ", ".join(f"{names.get(axis, axis)}={value}" for axis, value in values.items())


def cell_label(cell: CellResult, names: Mapping[str, str] | None = None) -> str:
    """The values of a cell, with its seed where other seeds share them."""
    text = label(cell.values, names) or cell.name
    seed = cell.record.get("seed", cell.name.rpartition("seed=")[2])
    return text if cell.name == cell.group else f"{text}, seed {seed}"


def verdict(gap: Mapping[str, Any], higher: bool) -> str:
    """What a difference of ``evaluation.json`` is worth, in words; ``higher`` says that more is better.

    One whose interval leaves 0 out is not significant where a sign test on so few rows could not tell it.
    """
    if gap["significant"]:
        return "better" if (gap["value"] > 0) == higher else "worse"
    return "within noise" if gap["low"] <= 0 <= gap["high"] else "too few rows"
