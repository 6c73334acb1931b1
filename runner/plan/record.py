"""What ``plan.json`` holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from runner.config.recipes.cards import Card
from runner.plan.estimate import Case
from runner.plan.fit import Setting
from runner.plan.memory import Memory
from runner.plan.rows import Rows
from runner.rules.bands import Departure


def record(
    case: Case,
    cards: Sequence[tuple[Card, Setting | None]],
    rows: Rows,
    ready: str | None,
    departures: Sequence[Departure],
) -> dict[str, Any]:
    """Parameters, memory by kind, the cards with the setting that fits each, the rows, the command,
    and where the config departs from what is usual."""
    first = cards[0][0]
    step = case.step(first)
    return {
        "recipe": case.recipe,
        "model": case.config.model.path or case.config.model.architecture,
        "architecture": case.architecture.kind,
        "parameters": case.architecture.parameters,
        "trained_parameters": case.trained.parameters,
        "precision": step.precision,
        "quantization": step.quantization or None,
        "speed": step.pieces.record(),
        "batch": step.batch,
        "gradient_accumulation_steps": step.accumulation,
        "length": case.length,
        "gpus": step.processes,
        "rows": {"count": rows.count, "labelled": rows.labelled} if rows.count else None,
        "memory": _memory(case.memory(first)),
        "cards": [_card(case, card, setting) for card, setting in cards],
        "command": ready,
        "departures": [dataclasses.asdict(each) for each in departures],
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "parts_bytes": dict(memory.parts),
        "allocated_bytes": memory.allocated,
        "reserved_bytes": memory.reserved,
        "total_bytes": memory.total,
    }


def _card(case: Case, card: Card, setting: Setting | None) -> dict[str, Any]:
    time = case.duration(card)
    return {
        "name": card.name,
        "memory_bytes": card.memory,
        "fits": case.fits(card),
        "largest_batch": case.largest_batch(card),
        "step_seconds": time.step if time else None,
        "setting": setting.overrides if setting else None,
    }
