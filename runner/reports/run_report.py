"""The run report: one self-contained HTML page made from the files of a run folder.

``write_report`` is the entry point. ``page_environment`` knows nothing about a single run and serves any
other page that extends ``report.html.j2``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from runner.core.atomic import write_atomically
from runner.core.metric_names import METRICS, find_metric
from runner.core.yaml_reader import parse_yaml
from runner.reports.evaluation_section import evaluation_context
from runner.reports.figures import Line, line_figure
from runner.reports.number_format import flatten, format_value, to_number
from runner.reports.series import points_of

MAX_SAMPLES, OPEN_SAMPLES, MAX_TEXT = 200, 6, 6000
# The curves that are always shown, in this order; others follow, folded.
CURVES = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "learning_rate",
    "grad_norm",
    "mean_token_accuracy",
)
NOT_CURVES = re.compile(r"step|epoch|.*num_tokens|.*seconds|total_flos|.*runtime|.*_per_second|train_.*")
CARD_METRICS = (
    "eval_rewards_accuracies",
    "eval_accuracy",
    "train_loss",
    "eval_loss",
    "tokens_per_second",
    "peak_memory_bytes",
)
MAPPINGS = ("metrics", "times", "git", "packages", "device", "data", "digests", "model")
OTHER_KNOWN = {
    "recipe",
    "status",
    "command",
    "overrides",
    "started",
    "ended",
    "seconds",
    "error",
    "seed",
    "notes",
    "adapter",
}
OUTCOMES: dict[tuple[Any, ...], tuple[str, str]] = {
    (False, True): ("now matches", "good"),
    (True, True): ("matches before and after", "good"),
    (True, False): ("no longer matches", "bad"),
    (False, False): ("does not match", "bad"),
    (None, True): ("matches", "good"),
    (None, False): ("does not match", "bad"),
}


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from what the run folder holds and return its path."""
    page = page_environment().get_template("report.html.j2").render(report_context(folder))
    write_atomically(folder / "report.html", page.encode("utf-8", "backslashreplace").decode("utf-8"))
    return folder / "report.html"


def page_environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped but the figures drawn here."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": format_value, "label": label_of, "number": to_number}
    environment.filters |= {"flatten": flatten, "clip": clip}
    return environment


def report_context(folder: Path) -> dict[str, Any]:
    """Gather what the page shows; every part but run.json may be missing or cut short."""
    run = json.loads(_read(folder / "run.json"))
    for key in MAPPINGS:
        value = run.get(key)
        run[key] = value if isinstance(value, dict) else {} if value is None else {"path": value}
    for key in ("notes", "overrides"):
        value = run.get(key) or []
        run[key] = list(value) if isinstance(value, list) else [value]
    error = run.get("error")
    run["error"] = error if isinstance(error, dict) or not error else {"message": error}
    config = _read(folder / "config.yaml")
    rows, samples = _read_lines(folder / "metrics.jsonl", run), _read_lines(folder / "samples.jsonl", run)
    pairs = [
        tuple(
            sample.get(key) if isinstance(sample.get(key), bool) else None
            for key in ("before_match", "after_match")
        )
        for sample in samples
    ]
    evaluation = _evaluation(folder / "evaluation.json", run)
    shown = evaluation.get("names", ())
    run["metrics"] = {name: value for name, value in run["metrics"].items() if name not in shown}
    cards, metrics = _key_metrics(run, rows)
    return {
        "run": run,
        "config": config,
        "adapter": run.get("adapter") or (_adapter(config) if evaluation.get("compares", True) else ""),
        "cards": cards,
        "metrics": metrics,
        "figures": _figures(rows),
        "evaluation": evaluation,
        "sample_limits": (OPEN_SAMPLES, MAX_SAMPLES),
        "samples": [(sample, OUTCOMES.get(pair)) for sample, pair in zip(samples, pairs, strict=True)],
        "tally": Counter(OUTCOMES[pair] for pair in pairs if pair in OUTCOMES).most_common(),
        "other": flatten({key: run[key] for key in run if key not in OTHER_KNOWN.union(MAPPINGS)}),
    }


def label_of(key: str) -> str:
    """A key such as ``memory_bytes`` in words; a dotted path or a name with capitals stays as it is."""
    if key in METRICS:
        return METRICS[key].title
    words = key.removesuffix("_bytes").replace("_", " ").capitalize()
    return words if re.fullmatch(r"[a-z0-9_]+", key) else key


def clip(value: Any) -> str:
    """Return a sample's text, or its JSON when it is not text, cut where it would swamp the page."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… [{len(text) - MAX_TEXT:,} more characters]"


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Draw the known curves, then every other number that changes over the run."""
    names = dict.fromkeys(name.removeprefix("eval_") for row in rows for name in row)
    figures = []
    for key in [*CURVES, *(name for name in names if name not in CURVES and not NOT_CURVES.fullmatch(name))]:
        lines = [
            Line("train", points_of(rows, key)),
            Line("eval", points_of(rows, f"eval_{key}"), colour="var(--series-2)", markers=True),
        ]
        lines = [line for line in lines if line.points]
        values = {y for line in lines for _, y in line.finite}
        if not lines or (key not in CURVES and len(values) < 2):
            continue
        bad = sorted({x for line in lines for x, y in line.points if not math.isfinite(y)})
        title = label_of(key.replace("/", "_") if key in CURVES else key)
        # a learning rate that decays to nearly 0 would be all decades
        drawn = line_figure(lines, f"{title} by step", bad=bad, may_log=key != "learning_rate")
        figures.append(
            {
                "known": key in CURVES,
                "title": title,
                "comment": drawn.comment,
                "bad": bad,
                "svg": drawn.svg,
                "legend": [(line.name, line.finite[-1][1] if line.finite else None) for line in lines],
            }
        )
    return figures


def _key_metrics(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The cards as (label, value, change), scores first, and the metrics that have no card."""
    metrics = dict(run["metrics"])
    cards: list[tuple[str, str, str]] = []
    for name in sorted(
        (key.removesuffix("_before") for key in metrics if key.endswith("_before")),
        key=lambda name: name != "exact_match",
    ):
        before, after = metrics.get(f"{name}_before"), metrics.pop(f"{name}_after", None)
        change = to_number(after) - to_number(metrics.pop(f"{name}_before"))
        scale, digits, unit = (100, 1, " points") if find_metric(name).share else (1, 4, "")
        note = f"{'+' * (change > 0)}{format_value(round(change * scale, digits))}{unit}"
        cards.append(
            (
                label_of(name),
                f"{format_value(before, name)} → {format_value(after, name)}",
                note if math.isfinite(change) else "",
            )
        )
    cards += [
        (label_of(key), format_value(metrics.pop(key), key), "")
        for key in CARD_METRICS
        if metrics.get(key) is not None
    ]
    trainable, total = (to_number(metrics.get(f"{name}_parameters")) for name in ("trainable", "total"))
    if trainable >= 0 and total > 0:
        whole = format_value(metrics.pop("total_parameters"), "parameters")
        cards.append(
            (
                "Trainable parameters",
                format_value(metrics.pop("trainable_parameters"), "parameters"),
                f"{trainable / total * 100:.3g} % of {whole}",
            )
        )
    steps = [step for step in (to_number(row.get("step")) for row in rows) if math.isfinite(step)]
    cards += [("Last logged step", format_value(max(steps)), "")] if steps else []
    if run.get("seconds") is not None:
        cards.append(("Wall time", format_value(run["seconds"], "seconds"), ""))
    return cards, flatten(metrics)


def _adapter(config: str) -> str:
    """Name the adapter a config asks for; empty when the config does not say."""
    try:
        lora = parse_yaml(config).get("lora")
    except (yaml.YAMLError, AttributeError):
        return ""
    return f"LoRA r={lora['r']}" if isinstance(lora, dict) and "r" in lora else "LoRA" if lora else ""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _evaluation(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Read a run's evaluation, if it has one; what cannot be read becomes a warning of the run."""
    text = _read(path)
    try:
        return evaluation_context(json.loads(text)) if text else {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        run["notes"].append(f"{path.name} could not be read and is left out of this report")
        return {}


def _read_lines(path: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Read JSON lines; a line that cannot be read becomes a warning of the run."""
    rows = []
    for n, line in enumerate(_read(path).split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = line
        if isinstance(row, dict):
            rows.append(row)
        elif row is not None:
            run["notes"].append(f"{path.name}: line {n} could not be read and is left out of this report")
    return rows
