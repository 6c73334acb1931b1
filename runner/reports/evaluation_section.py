"""The report's section about an evaluation: every model's scores, and what their differences are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.core.metric_names import find_metric
from runner.reports.figures import interval_figure
from runner.reports.labels import verdict
from runner.reports.number_format import format_value, to_number

Cell = tuple[str, str, str, str, str]  # value, interval, verdict, tone, figure of the interval


def evaluation_context(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of an ``evaluation.json``.

    ``rows`` has a line for each score: its label, a comment, and a ``Cell`` for each of ``columns``: the
    first model, then every other with its difference from the first. Raises ``KeyError``, ``TypeError`` and
    others for a file of another shape.
    """
    models, differences = found["models"], found["differences"]
    first, *others = models
    rows = []
    for name, score in models[first].items():
        cells = [_value(score, name)]
        for other in others:
            theirs = models[other][name]
            cells += [_value(theirs, name), _difference(differences[other][name], name, theirs["higher"])]
        signature = str(score.get("signature", "")).replace("|", " | ")  # so that a narrow column can wrap it
        rows.append((find_metric(name).title, signature if score["higher"] else "lower is better", cells))
    rows += [
        (task, "lm-eval", _task_cells([found["tasks"].get(model, {}).get(task) for model in models]))
        for task in dict.fromkeys(task for scores in found["tasks"].values() for task in scores)
    ]
    counts = sorted({score["rows"] for score in models[first].values()}, reverse=True)
    return {
        "columns": [first, *(column for other in others for column in (other, "Difference"))],
        "rows": rows,
        "confidence": f"{found['confidence'] * 100:g} %",
        "resamples": found["resamples"],
        "counts": counts,
        "compares": bool(others),
        "sides": (first if others else None, others[-1] if others else "Answer"),
        "names": set(models[[first, *others][-1]]),
    }


def _value(score: Mapping[str, Any], name: str) -> Cell:
    text, *bounds = (_number(score[key], name) for key in ("value", "low", "high"))
    return text, " to ".join(bound.replace(" ", "\N{NO-BREAK SPACE}") for bound in bounds), "", "", ""


def _difference(gap: Mapping[str, Any], name: str, higher: bool) -> Cell:
    points = find_metric(name).share
    text, *bounds = (_change(gap[key], points) for key in ("value", "low", "high"))
    word = verdict(gap, higher)
    tone = {"better": "good", "worse": "bad"}.get(word, "muted")
    interval = " to ".join(bounds)
    title = f"difference {text}, interval {interval}, about 0"
    value, low, high = (to_number(gap[key]) for key in ("value", "low", "high"))
    figure = interval_figure(value, low, high, tone, title)
    return text + " points" * points, interval, word, tone, figure


def _task_cells(values: list[Any]) -> list[Cell]:
    """A task's scores have no row by row statistics, and so neither interval nor verdict."""
    first, *others = values
    texts = [format_value(first)]
    for value in others:
        known = None not in (first, value)
        texts += [format_value(value), _change(value - first, points=False) if known else format_value(None)]
    return [(text, "", "", "", "") for text in texts]


def _number(value: float, name: str) -> str:
    return format_value(value, "share" if find_metric(name).share else "")


def _change(value: float, points: bool) -> str:
    text = format_value(round(value * 100, 1) if points else value)
    return f"{'+' * (value > 0)}{text}"
