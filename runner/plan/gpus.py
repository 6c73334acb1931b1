"""The GPUs of this machine, asked without torch."""

from __future__ import annotations

import dataclasses
import subprocess

from runner.config.recipes.cards import MIB, Card, find_card

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_SECONDS = 5.0


def found_cards() -> list[Card]:
    """The cards that the driver shows, each with its real memory; none where there is no driver.

    ``CUDA_VISIBLE_DEVICES`` is not looked at: a plan is for one card, the first.
    """
    try:
        shown = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cards = []
    for line in shown.splitlines():
        name, _, memory = line.rpartition(",")
        if memory.strip().isdigit():
            known = find_card(name.strip()) or Card(name.strip(), 0)
            cards.append(dataclasses.replace(known, name=name.strip(), memory=int(memory) * MIB))
    return cards
