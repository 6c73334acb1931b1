"""Which metric decides a sweep: one that all its cells will have, and that is computed alike in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes import OBJECTIVES
from runner.config.objective import Objective
from runner.config.settings import ModelSettings, SweepSettings
from runner.config.sweep_rules import computed_with, own_metrics, run_metrics, section
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.core.metric_names import find_metric, in_record
from runner.plan.find import find_facts
from runner.sweep.cells import Cell, placed
from runner.sweep.packable import group

_SHOWN = 3  # keys in one message
_HALVED_BY = "eval_loss"


@dataclass(frozen=True)
class Deciding:
    """The ``metric`` that ranks the cells, None where none can, and what is to be said of it.

    ``ties`` are the metrics by which cells are ranked that are equal in it, in this order.
    """

    metric: str | None
    note: str = ""
    ties: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """The note, if there is one."""
        return [self.note] if self.note else []


class _Runs:
    """Configs as plain values, each with the objective of its recipe."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        every = [dataclasses.asdict(cell.config) for cell in cells]
        self.all: list[tuple[dict[str, Any], Objective | None]] = [
            (values, OBJECTIVES.get(values["recipe"])) for values in every
        ]
        models = {repr(cell.config.model): cell.config.model for cell in cells}
        found = {_vocabulary(model) for model in models.values()} if len(models) > 1 else set()
        self._vocabularies = found - {None}

    def differing(self, metric: str, axes: Sequence[str] = ()) -> list[str]:
        """The keys with which a metric is computed and in which the runs differ, or that are ``axes``."""
        found: dict[str, set[str]] = {}
        for values, objective in self.all:
            for key, value in computed_with(metric, values, objective).items():
                found.setdefault(key, set()).add(repr([value] if isinstance(value, str) else value))
        keys = [key for key, own in found.items() if len(own) > 1 or key in axes]
        tokens = ["the vocabulary of the model"] if len(self._vocabularies) > 1 else []
        return ["recipe"] if "recipe" in keys else keys + tokens * ("recipe" in found and _of_tokens(metric))

    def shared(self, names: Callable[..., list[str]] = own_metrics) -> list[str]:
        """The metrics that every run will have, the most telling of the first one first."""
        first, *others = [names(values, objective) for values, objective in self.all]
        return [name for name in first if all(name in other for other in others)]


def deciding(cells: Sequence[Cell], settings: SweepSettings, sought: Sequence[str] | None = None) -> Deciding:
    """The metric that ranks these cells.

    ``sought`` are the axes of a sweep that chooses values by the metric, which cannot do without one; None of
    a grid. Raises ``ConfigError`` where it has none, where ``sweep.metric`` cannot rank the cells, and where
    ``sweep.halving`` would compare losses of different kinds.
    """
    runs, axes = _Runs(cells), sought or ()
    _check_halving(cells, settings)
    shared = runs.shared()
    comparable = [name for name in shared if not runs.differing(name, axes)]
    if settings.metric:
        metric = in_record(settings.metric, runs.shared(run_metrics)) or settings.metric
        if keys := runs.differing(metric, axes):
            why = _why(settings.metric, keys)
            raise ConfigError(Issue(f"sweep.metric={settings.metric}", why, _instead(comparable)))
        return Deciding(metric, ties=tuple(name for name in comparable if name != metric))
    if shared[:1] == comparable[:1] and shared:
        return Deciding(shared[0], ties=tuple(comparable[1:]))
    if not shared:
        why, hint = _nothing_in_common(runs)
    else:
        why, hint = _why(shared[0], runs.differing(shared[0], axes)), _instead(comparable)
    if sought is not None:
        raise ConfigError(Issue("sweep.metric", why, hint))
    if comparable:
        note = f"{why}: ranked by {_named(comparable[0])}"
        return Deciding(comparable[0], note, tuple(comparable[1:]))
    return Deciding(None, f"no cell is ranked: {why}; {hint}")


def _check_halving(cells: Sequence[Cell], settings: SweepSettings) -> None:
    """Cells of a pack are compared with each other only."""
    issues: dict[Issue, list[str]] = {}
    for found in group(list(cells), {}) if settings.halving else ():
        if keys := _Runs(found.cells).differing(_HALVED_BY):
            issue = Issue("sweep.halving", _why(_HALVED_BY, keys), "leave it out, or a sweep for each value")
            issues.setdefault(issue, []).extend(cell.name for cell in found.cells)
    if issues:
        raise ConfigError(placed(issue, names, len(cells)) for issue, names in issues.items())


def _why(metric: str, keys: Sequence[str]) -> str:
    named = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
    return f"the cells differ in {named}, so that their values of {_named(metric)} cannot be compared"


def _named(metric: str) -> str:
    return f"{find_metric(metric).label} ({metric})"


def _instead(comparable: Sequence[str]) -> str:
    if comparable:
        return " or ".join(f"sweep.metric={name}" for name in comparable)
    return "a sweep for each value; answers can be compared: data.metric=exact_match, generation.rows above 0"


def _nothing_in_common(runs: _Runs) -> tuple[str, str]:
    """Why the runs share no metric of a result, and what is to be done."""
    for values, objective in runs.all:
        data = section(values, "data")
        if objective is not None and not (data.get("eval_path") or data.get("eval_split")):
            return "without held-out rows there is no held-out loss", "data.eval_split=0.1 holds some out"
    recipes = dict.fromkeys(str(values["recipe"]) for values, _ in runs.all)
    if len(recipes) > 1:
        return f"recipe={','.join(recipes)} have no metric in common", "a sweep for each"
    return f"recipe={next(iter(recipes))} leaves no metric of its own", "report.html shows what each left"


def _of_tokens(metric: str) -> bool:
    """Whether a number is a mean over the tokens of a vocabulary."""
    return metric.endswith("loss")


def _vocabulary(model: ModelSettings) -> int | None:
    """How many tokens a model knows, which tells tokenizers apart; None where that is not to be had."""
    try:
        facts: Mapping[str, Any] = find_facts(model)
    except (RunnerError, ValueError, TypeError, KeyError):
        return None
    return facts.get("vocab_size") or section(facts, "text_config").get("vocab_size")
