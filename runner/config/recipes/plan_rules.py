"""What ``recipe=plan`` can calculate for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runner.config.origins import Origins
from runner.config.recipes.cards import CARDS, find_card
from runner.core.errors import Issue, nearest

Values = dict[str, Any]
_ROWS = {"path": "embedded:orders_train", "eval_path": "embedded:orders_eval"}


@contextmanager
def without_rows(values: Values) -> Iterator[None]:
    """Rows that are still to be given are no error of a plan, which then takes the configured length.

    In this block other rows stand for them, so that nothing else of the config misses them; behind it they
    are null.
    """
    data = values.get("data")
    missing: list[str] = []
    if isinstance(data, dict) and values.get("recipe") == "plan":
        missing = [key for key in _ROWS if data.get(key) == "???" or (key == "path" and not data.get(key))]
    for key in missing:
        values["data"][key] = _ROWS[key]
    yield
    for key in missing:
        values["data"][key] = None


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
