"""The GPUs of this machine, and the machine itself, asked without torch."""

from __future__ import annotations

import dataclasses
import subprocess

from runner.config.recipes.cards import MIB, Card, find_card
from runner.core import environment
from runner.plan.expected import Place

# What the process of a run has when its rows are read and its base is still to be loaded: Python and the
# libraries (578 to 606 MiB in ten runs of two models).
_PROCESS = 590 * MIB

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
_SECONDS = 5.0


def found_gpus() -> list[tuple[Card, int]]:
    """The GPUs that the driver shows: of each the card with its real memory, and the bytes that are free;
    none where there is no driver.

    ``CUDA_VISIBLE_DEVICES`` is not looked at.
    """
    try:
        shown = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in shown.splitlines():
        name, *sizes = (word.strip() for word in line.rsplit(",", 2))
        if len(sizes) == 2 and all(size.isdigit() for size in sizes):
            total, free = (int(size) * MIB for size in sizes)
            known = find_card(name) or Card(name, 0)
            found.append((dataclasses.replace(known, name=name, memory=total), free))
    return found


def found_cards() -> list[Card]:
    """The cards of ``found_gpus``; a plan is for one, the first."""
    return [card for card, _ in found_gpus()]


def this_machine() -> Place:
    """Where a run is trained that has no GPU, in a process of its own."""
    free = environment.available_memory()
    return Place(None, free, _PROCESS, environment.cpu_precision())
