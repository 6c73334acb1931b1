"""The run report: one self-contained HTML page made from the files of a run folder.

``write_report`` is the entry point. ``line_figure``, ``format_value`` and ``page_environment`` know nothing
about a single run and serve any other page that extends ``report.html.j2``.
"""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

MAX_SAMPLES, OPEN_SAMPLES, MAX_TEXT = 200, 6, 6000
CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "mean_token_accuracy": "Token accuracy",
}
NOT_CURVES = re.compile(r"step|epoch|.*num_tokens|.*seconds|total_flos|.*runtime|.*_per_second|train_.*")
PERCENT = re.compile(r"(^|_)(match|accuracy|accuracies|f1|share)(_|$)")
CARD_METRICS = ("train_loss", "eval_loss", "tokens_per_second", "peak_memory_bytes")
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
    (None, True): ("matches after", "good"),
    (None, False): ("does not match after", "bad"),
}
UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "bytes": ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (0, " B")),
    "parameters": ((1e9, " billion"), (1e6, " million")),
}
# Stand-in colours that become CSS variables in the SVG, so that curves follow the page's colour scheme.
INK, RULE, BAD, *SERIES = (f"#0a0b{n:02x}" for n in range(1, 10))
VARIABLES = {INK: "muted", RULE: "rule", BAD: "bad", **{c: f"series-{n}" for n, c in enumerate(SERIES, 1)}}


@dataclass(frozen=True)
class Series:
    """One line of a figure; a point whose y is NaN is a gap, and the first steps in ``bad`` are marked."""

    label: str
    points: Sequence[tuple[float, float]]
    bad: Sequence[float] = ()
    markers: bool = False


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from what the run folder holds and return its path."""
    page = page_environment().get_template("report.html.j2").render(report_context(folder))
    target, draft = folder / "report.html", folder / "report.html.tmp"
    draft.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(draft, target)
    return target


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
    cards, metrics = _key_figures(run, rows)
    return {
        "run": run,
        "config": config,
        "adapter": run.get("adapter") or _adapter(config),
        "cards": cards,
        "metrics": metrics,
        "figures": _figures(rows),
        "sample_limits": (OPEN_SAMPLES, MAX_SAMPLES),
        "samples": [(sample, OUTCOMES.get(pair)) for sample, pair in zip(samples, pairs, strict=True)],
        "tally": Counter(OUTCOMES[pair] for pair in pairs if pair in OUTCOMES).most_common(),
        "other": flatten({key: run[key] for key in run if key not in OTHER_KNOWN.union(MAPPINGS)}),
    }


def format_value(value: Any, key: str = "") -> str:
    """Write a value for a reader; the key's name says what a number measures."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text}" for name, text in flatten(value)) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value) or "–"
    if not isinstance(value, (int, float)):
        return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|\+00:00)$", r"\1 \2 UTC", str(value))
    if not math.isfinite(to_number(value)):
        return "NaN" if value != value else "∞" if value > 0 else "−∞"
    for size, unit in UNITS.get(key.rpartition("_")[2], ()):
        if abs(value) >= size:
            return f"{float(f'{value / (size or 1):.3g}'):,g}{unit}"
    if key.endswith("seconds") and value >= 0:
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        long = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
        return f"{value:.1f} s" if value < 59.95 else long
    if PERCENT.search(key) and 0 <= value <= 1:
        return f"{value * 100:.1f}".removesuffix(".0") + " %"
    whole = value == int(value) or abs(value) >= 10_000
    text = f"{value:,.0f}" if whole and abs(value) < 1e12 else f"{value:.4g}"
    return re.sub(r"e([+-])0*", lambda match: f"e{match[1]}".replace("+", ""), text).replace("-", "−")


def label_of(key: str) -> str:
    """Turn a key such as ``score_before`` into words; a dotted path or a name with capitals stays."""
    words = key.removesuffix("_bytes").replace("_", " ").capitalize()
    return words if re.fullmatch(r"[a-z0-9_]+", key) else key


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested mappings into (dotted key, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        rows += flatten(item, key) if isinstance(item, Mapping) and item else [(key, format_value(item, key))]
    return rows


def clip(value: Any) -> str:
    """Return a sample's text, or its JSON when it is not text, cut where it would swamp the page."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… [{len(text) - MAX_TEXT:,} more characters]"


def to_number(value: Any) -> float:
    """Return the value as a float, NaN when it is none."""
    try:
        return float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def line_figure(
    series: Sequence[Series],
    *,
    title: str = "",
    xlabel: str = "step",
    log: bool = False,
    size: tuple[int, int] = (380, 210),
) -> str:
    """Draw lines as an inline SVG whose colours and fonts come from the page's CSS."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"report:{title}",
        "font.size": 11.5,
        "font.family": "DejaVu Sans",
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **style}):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        for n, line in enumerate(series):
            marked = line.markers or sum(math.isfinite(y) for _, y in line.points) < 3
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                linewidth=1.6,
                markersize=4,
                color=SERIES[n % len(SERIES)],
                marker="o" if marked else "",
            )
            for x in line.bad[:50]:
                axes.axvline(x, color=BAD, linewidth=1, linestyle=(0, (2, 2)))
                axes.plot(
                    [x],
                    [1],
                    "x",
                    color=BAD,
                    markersize=6,
                    markeredgewidth=1.8,
                    clip_on=False,
                    transform=axes.get_xaxis_transform(),
                )
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if log:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))
        if not any(math.isfinite(y) for line in series for _, y in line.points):
            axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))
        axes.set_xlabel(xlabel, parse_math=False)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.tick_params(length=0, pad=5)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline_svg(buffer.getvalue(), title)


def _inline_svg(svg: str, title: str) -> str:
    """Strip what only a standalone SVG file needs and hand colours and fonts over to CSS."""
    view, body = re.findall(r'(?s)<svg[^>]*(viewBox="[^"]+")[^>]*>(.*)', svg)[0]
    body = re.sub(r"(?s)<style.*?</style>|<!--.*?-->|xlink:(?=href)|font-family: [^;\"]+;? ?", "", body)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return f'<svg class="plot" {view} role="img" aria-label="{html.escape(title)}">{body}'


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Draw the known curves, then every other number that changes over the run."""
    names = dict.fromkeys(name.removeprefix("eval_") for row in rows for name in row)
    figures = []
    for key in [*CURVES, *(name for name in names if name not in CURVES and not NOT_CURVES.fullmatch(name))]:
        lines = [_series(rows, key, "train"), _series(rows, f"eval_{key}", "eval")]
        finite = [[y for _, y in line.points if math.isfinite(y)] for line in lines]
        lines = [line for line, values in zip(lines, finite, strict=True) if values or line.bad]
        flat = [value for values in finite for value in values]
        if not lines or (key not in CURVES and len(set(flat)) < 2):
            continue
        title, bad = CURVES.get(key, label_of(key)), sorted({step for line in lines for step in line.bad})
        log = key != "learning_rate" and bool(flat) and min(flat) > 0 and max(flat) > 50 * min(flat)
        figures.append(
            {
                "known": key in CURVES,
                "title": title,
                "log": log,
                "bad": bad,
                "svg": Markup(line_figure(lines, title=f"{title} by step", log=log)),
                "legend": [
                    (line.label, next((y for _, y in reversed(line.points) if math.isfinite(y)), None))
                    for line in lines
                ],
            }
        )
    return figures


def _series(rows: Iterable[Mapping[str, Any]], key: str, label: str) -> Series:
    """Collect one key by step, the last line winning where a resumed run repeats steps."""
    found: dict[float, tuple[float, bool]] = {}
    is_eval = key.startswith("eval_")
    for n, row in enumerate(rows, 1):
        evaluates = any(name.startswith("eval_") and row[name] is not None for name in row)
        is_loss = key.endswith("loss") and evaluates == is_eval  # a null here stands for a value that failed
        if key in row and (row[key] is not None or is_loss):
            value, step = to_number(row[key]), to_number(row.get("step", n))
            finite = abs(value) < 1e100
            found[step if math.isfinite(step) else n] = (value if finite else math.nan, not finite)
    return Series(
        label,
        [(step, found[step][0]) for step in sorted(found)],
        [step for step in sorted(found) if found[step][1]],
        markers=is_eval,
    )


def _key_figures(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Return the cards as (label, value, note), scores first, and the measurements that have no card."""
    metrics = dict(run["metrics"])
    cards: list[tuple[str, str, str]] = []
    for name in sorted(
        (key.removesuffix("_before") for key in metrics if key.endswith("_before")),
        key=lambda name: name != "exact_match",
    ):
        before, after = metrics.get(f"{name}_before"), metrics.pop(f"{name}_after", None)
        change = to_number(after) - to_number(metrics.pop(f"{name}_before"))
        scale, digits, unit = (100, 1, " points") if PERCENT.search(name) else (1, 4, "")
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
        lora = yaml.safe_load(config).get("lora")
    except (yaml.YAMLError, AttributeError):
        return ""
    return f"LoRA r={lora['r']}" if isinstance(lora, dict) and "r" in lora else "LoRA" if lora else ""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_lines(path: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Read JSON lines; a line that cannot be read becomes a note on the run."""
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
