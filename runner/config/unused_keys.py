"""Keys that have no effect because of the value of another key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from runner.config import path_rules
from runner.config.origins import Origins
from runner.config.settings import DataSettings
from runner.core.errors import Issue

_SIMILARITY = DataSettings.near_similarity
_ADAM = ("adam", "lion")  # families of optimisers that have betas

# The key, the one that it needs with the library's default, what that must be, and what to do.
_NEEDS: tuple[tuple[str, str, str, Callable[[str], bool], str], ...] = (
    ("eval_steps", "eval_strategy", "no", lambda value: value == "steps", "trainer.eval_strategy=steps"),
    ("save_steps", "save_strategy", "steps", lambda value: value == "steps", "trainer.save_strategy=steps"),
    *(
        (
            name,
            "optim",
            "adamw_torch",
            lambda value: any(family in value for family in _ADAM),
            "optim=adamw_torch",
        )
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon")
    ),
)


def check_idle(values: dict[str, Any], origins: Origins) -> Iterator[Issue]:
    """An issue for each key that is given and cannot have an effect; settles those of a weaker source."""
    trainer, data = values.get("trainer") or {}, values.get("data") or {}
    for name, needed, default, fits, hint in _NEEDS:
        value = trainer.get(needed, default)
        if trainer.get(name) is None or fits(str(value)):
            continue
        if origins.rank(f"trainer.{needed}") > origins.rank(f"trainer.{name}"):
            del trainer[name]  # a stronger source turned off what a weaker one had set it for
        else:
            message = f"trainer.{name} has no effect with trainer.{needed}={value}"
            yield Issue(origins.where(f"trainer.{name}"), message, hint)
    if data.get("near_similarity", _SIMILARITY) != _SIMILARITY and data.get("deduplicate") != "near":
        message = "data.near_similarity has no effect without data.deduplicate=near"
        yield Issue(origins.where("data.near_similarity"), message, "add data.deduplicate=near")
    for name, default in (("split", "train"), ("subset", None)):
        if data.get(name, default) != default and _all_local(data):
            message = f"data.{name} chooses a part of a hub data set, and the rows are files here"
            yield Issue(origins.where(f"data.{name}"), message, f"leave data.{name} out")


def _all_local(data: dict[str, Any]) -> bool:
    given = [data.get("path"), data.get("eval_path")]
    sources = [
        source for value in given if value for source in (value if isinstance(value, list) else [value])
    ]
    paths = [str(source.get("path") if isinstance(source, dict) else source) for source in sources]
    return all(path.startswith("embedded:") or path_rules.exists(path) for path in paths)
