"""The command that trains with the settings of a plan."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from runner.plan.fit import Setting

_DEFAULT_RECIPE = "sft"


def command(overrides: Sequence[str], recipe: str, setting: Setting | None) -> str | None:
    """``python -m runner`` with what was typed, without the plan's own keys, and a setting's overrides; None
    where nothing fits."""
    if setting is None:
        return None
    changed = dict(setting.overrides)
    words = []
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if key == "recipe" or key.startswith("plan.") or key in changed or key == "output_dir":
            continue
        if "quantization" in changed and key.startswith("quantization."):
            continue  # of the base that is exchanged
        if key == "trainer" and recipe != _DEFAULT_RECIPE:
            continue  # its recipe chooses it
        words.append(word)
    if recipe != _DEFAULT_RECIPE:
        words.insert(0, f"recipe={recipe}")
    words += [f"{key}={value}" for key, value in changed.items()]
    return " ".join(["python -m runner", *map(shlex.quote, words)])
