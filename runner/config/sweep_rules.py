"""What the section ``sweep`` may hold, which metrics a run will have, and what each is computed with.

The functions of metrics take the plain ``values`` of a config, by section, and the ``objective`` of its
recipe, None of one that does not train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from runner.config.objective import Objective, Objectives
from runner.config.origins import Origins
from runner.config.recipes.loss_rules import LOSS_FIELDS
from runner.config.settings import AnswerMetric, SweepSettings
from runner.core.errors import Issue, nearest
from runner.core.metric_names import in_record

Values = dict[str, Any]
_DEFAULTS = dataclasses.asdict(SweepSettings())
_DEVICES = "allowed: auto, how many (at least 1), or a list of their numbers: 'sweep.devices=[0,1]'"
# Of recipes that neither train nor evaluate, the one that decides first.
_OF_RECIPE = {
    "benchmark": ("tokens_per_second", "step_ms", "mfu", "peak_memory_bytes"),
    "merge": ("merge_kl", "merge_max_logit_difference", "merge_greedy_agreement"),
}
# Numbers on the scale of the loss; other scores of an evaluation count the rows that come out right.
_ON_LOSS_SCALE = ("train_loss", "eval_loss", "loss", "perplexity", "eval_rewards_margins", "eval_margin")
_OF_ANSWERS = get_args(AnswerMetric)
_SPEED = ("tokens_per_second", "step_ms", "mfu", "peak_memory_bytes")
# Of the section ``data`` what does not decide which rows are held out and how they are read.
_FREE = ("cache", "metric")
_FREE_OF_HELD_OUT = (*_FREE, "max_rows")  # which is taken of what is left


def check_sweep(values: Values, origins: Origins, objectives: Objectives) -> Iterator[Issue]:
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
    yield from _check_metric(values, section.get("metric"), origins, objectives)
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


def _check_metric(values: Values, metric: Any, origins: Origins, objectives: Objectives) -> Iterator[Issue]:
    """The deciding metric must be one that the run will have."""
    recipe = values.get("recipe")
    if not isinstance(metric, str) or recipe == "plan":  # which is of another recipe's sweep
        return
    objective = objectives.get(str(recipe))
    known = run_metrics(values, objective)
    if not in_record(metric, known):
        message = f"sweep.metric={metric} is none of the metrics that run.json will have of recipe={recipe}"
        hint = _remedy(values, metric, objective) or nearest(metric, known, len(known))
        yield Issue(origins.where("sweep.metric"), message, hint)


def _remedy(values: Values, metric: str, objective: Objective | None) -> str:
    """The change of the config with which the run has a metric; empty where there is none so simple."""
    remedies = [("data", "eval_split", 0.1), ("generation", "rows", None)]
    remedies += [("data", "metric", name) for name in _OF_ANSWERS if name == metric.removesuffix("_after")]
    for name, key, value in remedies:
        changed = {**values, name: {**section(values, name), key: value}}
        if in_record(metric, run_metrics(changed, objective)):
            return f"add {name}.{key}={'null' if value is None else value}"
    return ""


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


def own_metrics(values: Mapping[str, Any], objective: Objective | None) -> list[str]:
    """What a run says of its result, the most telling first; empty without held-out rows to measure it on."""
    data = section(values, "data")
    answered = data.get("metric") if section(values, "generation").get("rows") != 0 else None
    if objective is not None:
        if not (data.get("eval_path") or data.get("eval_split")):
            return []
        answers = [f"{answered}_after"] if answered and objective.generates else []
        return [name.replace("/", "_") for name in objective.scores] + answers
    if values.get("recipe") == "evaluate":
        chosen = section(values, "evaluate").get("metrics")
        return [name for name in (answered,) if name and (chosen is None or name in chosen)] + ["loss"]
    return list(_OF_RECIPE.get(str(values.get("recipe")), ()))


def run_metrics(values: Mapping[str, Any], objective: Objective | None) -> list[str]:
    """All that can decide a sweep: ``own_metrics``, then what else is measured."""
    more: list[str] = []
    if objective is not None:
        more = ["train_loss", "tokens_per_second", "peak_memory_bytes"]
    elif values.get("recipe") == "evaluate":
        settings = section(values, "evaluate")
        chosen = settings.get("metrics")
        function = str(settings.get("function") or "").rpartition(":")[2]
        answers = [*(_OF_ANSWERS if chosen is None else chosen), *filter(None, [function])]
        more = ["perplexity", *(answers if section(values, "generation").get("rows") != 0 else ())]
    return list(dict.fromkeys([*own_metrics(values, objective), *more]))


def computed_with(metric: str, values: Mapping[str, Any], objective: Objective | None) -> dict[str, Any]:
    """By key what a metric is computed with, beside the trained weights: of runs that differ in one of these
    its numbers cannot be compared. Which tokens a model has is not among them."""
    if metric in _SPEED or metric.startswith("merge_"):
        return {}
    data, trainer = section(values, "data"), section(values, "trainer")
    held_out = objective is not None and metric != "train_loss"
    free = _FREE_OF_HELD_OUT if held_out else _FREE
    free += ("path",) if held_out and data.get("eval_path") else ()
    if metric in _ON_LOSS_SCALE:
        of_loss = {f"trainer.{name}": trainer.get(name) for name in LOSS_FIELDS}
        template = section(values, "template")
        of_loss |= {f"template.{name}": template.get(name) for name in ("chat_template", "stop", "kwargs")}
        if data.get("train_on") == "all":
            of_loss["template.system"] = template.get("system")
        if objective is not None and objective.reference:
            of_loss |= {"model.path": section(values, "model").get("path"), "adapter": values.get("adapter")}
    elif metric.startswith("eval_"):
        of_loss = {}
    else:
        rows = section(values, "generation").get("rows")
        return {**_rows(data, (*free, "train_on")), "generation.rows": rows}
    return {"recipe": values.get("recipe"), **of_loss, **_rows(data, free)}


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a config, empty where there is none."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _rows(data: Mapping[str, Any], free: Iterable[str]) -> dict[str, Any]:
    return {f"data.{name}": value for name, value in data.items() if name not in free}
