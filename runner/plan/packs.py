"""The memory of a pack, whose cells are trained on one base, by how many of them share a pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from runner.config.settings import RunConfig
from runner.plan.memory import Memory

# Of the memory that is free beside base and adapters; the rest is for what is not calculated.
_SHARE = 0.7
_ON_DEVICE = ("base", "adapter")
_OF_A_CELL = ("adapter", "gradients", "optimizer")


def widest(configs: Sequence[RunConfig]) -> RunConfig:
    """The config that stands for all cells of a pack: smaller ranks are filled up to the largest one, and
    where one has dropout, all are computed with it."""
    first = max(configs, key=lambda config: int(config.lora.get("r") or 0))
    dropout = max(float(config.lora.get("lora_dropout") or 0.0) for config in configs)
    return dataclasses.replace(first, lora={**first.lora, "lora_dropout": dropout} if dropout else first.lora)


def cells_in_a_pass(memory: Callable[[int], Memory], cells: int, limit: int | None, free: int) -> int:
    """How many of ``cells``, at most ``limit``, can share a pass where ``free`` bytes are left before the
    base is loaded; at least one. ``memory`` says what a step takes with so many in a pass."""
    there = _sum(memory(1), _ON_DEVICE)
    room = _SHARE * (free - there)

    def need(count: int) -> int:
        return memory(count).reserved - there

    most = min(cells, limit or cells)
    return max((count for count in range(1, most + 1) if need(count) <= room), default=1)


def bytes_of_a_cell(memory: Memory, cells: int) -> int:
    """Bytes that each of a pack's ``cells`` has whether its rows are in a pass or not."""
    return round(_sum(memory, _OF_A_CELL) / cells)


def _sum(memory: Memory, kinds: Sequence[str]) -> int:
    return sum(memory.parts.get(kind, 0) for kind in kinds)
