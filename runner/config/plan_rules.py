"""What ``recipe=plan`` can calculate for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runner.config.cards import CARDS, find_card
from runner.config.origins import Origins
from runner.core.errors import Issue, nearest

Values = dict[str, Any]
_SECTIONS = (("data", "path"), ("data", "eval_path"))


def forget_missing_rows(values: Values) -> None:
    """Rows that are still to be given are no error of a plan, which then takes the configured length."""
    for section, key in _SECTIONS:
        if isinstance(part := values.get(section), dict) and part.get(key) == "???":
            part[key] = None


def check_plan(values: Values, origins: Origins, trained: str | None) -> Iterator[Issue]:
    """An issue for a GPU that is not known, and where the config trains nothing; ``trained`` is the recipe of
    its trainer, None if there is none."""
    if trained is None:
        target = (values.get("trainer") or {}).get("_target_")
        message = f"recipe=plan calculates for a training recipe, and none trains with {target}"
        yield Issue(origins.where("trainer._target_"), message, "trainer=sft or trainer=dpo")
    gpu = (values.get("plan") or {}).get("gpu")
    if isinstance(gpu, str) and find_card(gpu) is None:
        where = origins.where("plan.gpu")
        hint = nearest(gpu.lower(), CARDS, len(CARDS))
        yield Issue(where, f"plan.gpu: unknown GPU {gpu!r}", f"{hint}; or its memory, plan.gpu=24GiB")
