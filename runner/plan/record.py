"""What ``plan.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.config.cards import Card
from runner.plan.estimate import Case
from runner.plan.fit import best_setting
from runner.plan.memory import Memory
from runner.plan.rows import Rows


def record(case: Case, cards: Sequence[Card], rows: Rows, ready: str | None) -> dict[str, Any]:
    """Parameters, memory by kind, the cards with what fits them, the rows, and the command."""
    step = case.step(cards[0])
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
        "gpus": 1,  # several share a run as parallel.* says, which has no plan yet
        "rows": {"count": rows.count, "labelled": rows.labelled} if rows.count else None,
        "memory": _memory(case.memory(cards[0])),
        "cards": [_card(case, card) for card in cards],
        "command": ready,
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "parts_bytes": dict(memory.parts),
        "allocated_bytes": memory.allocated,
        "reserved_bytes": memory.reserved,
        "total_bytes": memory.total,
    }


def _card(case: Case, card: Card) -> dict[str, Any]:
    setting, time = best_setting(case, card), case.duration(card)
    return {
        "name": card.name,
        "memory_bytes": card.memory,
        "fits": case.fits(card),
        "largest_batch": case.largest_batch(card),
        "step_seconds": time.step if time else None,
        "setting": setting.overrides if setting else None,
    }
