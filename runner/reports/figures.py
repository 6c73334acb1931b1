"""Figures of a report as inline SVG, and numbers as a person writes them.

Nothing here knows about a single run; any page that extends ``report.html.j2`` can use it.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PERCENT = re.compile(r"(^|_)(match|accuracy|accuracies|f1|share)(_|$)")
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


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested mappings into (dotted key, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        rows += flatten(item, key) if isinstance(item, Mapping) and item else [(key, format_value(item, key))]
    return rows


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
