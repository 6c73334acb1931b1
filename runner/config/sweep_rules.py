"""What the section ``sweep`` may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from runner.config.origins import Origins
from runner.config.settings import SweepSettings
from runner.core.errors import Issue, nearest
from runner.core.metric_names import RESULTS

Values = dict[str, Any]
_DEFAULTS = dataclasses.asdict(SweepSettings())
_DEVICES = "allowed: auto, how many (at least 1), or a list of their numbers: 'sweep.devices=[0,1]'"


def check_sweep(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue for each wrong value of the section; types have been checked."""
    section = values.get("sweep") or {}
    for name in ("repeat", "max_cells"):
        if _number(section.get(name)) and section[name] < 1:
            yield _issue(origins, name, section[name], "allowed: at least 1")
    if _number(section.get("checkpoint_seconds")) and not section["checkpoint_seconds"] > 0:
        yield _issue(origins, "checkpoint_seconds", section["checkpoint_seconds"], "allowed: above 0")
    if _number(section.get("keep")) and not 0 < section["keep"] < 1:
        yield _issue(origins, "keep", section["keep"], "allowed: above 0 and below 1")
    yield from _check_devices(section.get("devices"), origins)
    yield from _check_metric(values, section.get("metric"), origins)
    yield from _check_zip(section.get("zip"), origins)
    yield from _check_halving(values, section.get("halving"), origins)


def unused(values: Values, origins: Origins, why: str, hint: str) -> Iterator[Issue]:
    """An issue for each key of the section that is not at its default, where it has no effect."""
    for name, value in (values.get("sweep") or {}).items():
        if name in _DEFAULTS and value != _DEFAULTS[name]:
            key = f"sweep.{name}"
            yield Issue(origins.where(key), f"{key} has no effect {why}", hint)


def _check_devices(chosen: Any, origins: Origins) -> Iterator[Issue]:
    """What is wrong on any machine; ``runner.sweep.devices`` says what this one has."""
    if _number(chosen) and chosen < 1:
        yield _issue(origins, "devices", chosen, _DEVICES)
    if isinstance(chosen, list) and all(map(_number, chosen)):
        twice = len(set(chosen)) < len(chosen)
        if not chosen or twice or min(chosen) < 0:
            shown = f"[{','.join(map(str, chosen))}]"
            yield _issue(origins, "devices", shown, f"each device once; {_DEVICES}")


def _check_metric(values: Values, metric: Any, origins: Origins) -> Iterator[Issue]:
    """The deciding metric must be one that the runs will have: of the task's scores the one they measure."""
    if not isinstance(metric, str):
        return
    own = (values.get("data") or {}).get("metric")
    known = [name.removesuffix("_after") for name in RESULTS if name.startswith(("eval_", "train_"))]
    known += [str(own)] if own else []
    if metric.removesuffix("_after") not in known:
        message = f"sweep.metric={metric} is an unknown metric"
        yield Issue(origins.where("sweep.metric"), message, nearest(metric, known))


def _check_zip(value: Any, origins: Origins) -> Iterator[Issue]:
    if not isinstance(value, list):
        return
    flat = all(isinstance(name, str) for name in value)
    lists = [value] if flat else value
    for names in lists:
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            hint = "'sweep.zip=[lora.r,lora.lora_alpha]', or [[lora.r,lora.lora_alpha],[seed,data.path]]"
            yield _issue(origins, "zip", value, f"two axes or more that are walked together: {hint}")
            return


def _check_halving(values: Values, fractions: Any, origins: Origins) -> Iterator[Issue]:
    if not isinstance(fractions, list):
        return
    fine = all(_number(item) and 0 < item < 1 for item in fractions)
    if not fractions or not fine or sorted(set(fractions)) != fractions:
        hint = "rising fractions of the run between 0 and 1: [0.25, 0.5]"
        yield _issue(origins, "halving", fractions, hint)
    data = values.get("data") or {}
    if not data.get("eval_path") and not data.get("eval_split"):
        message = "sweep.halving compares losses on held-out rows, and there are none"
        yield Issue(origins.where("sweep.halving"), message, "add data.eval_split=0.1 or data.eval_path=...")


def _issue(origins: Origins, name: str, value: Any, hint: str) -> Issue:
    return Issue(origins.where(f"sweep.{name}"), f"sweep.{name}={value} is out of range", hint)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
