"""Figures of the values that a sweep tried: heatmap and parallel coordinates, drawn as ``figures`` draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from runner.reports.figures import cut, label_text, svg_element
from runner.reports.number_format import format_value
from runner.reports.scales import tick_labels, ticks

_STRONGEST = 0.55  # opacity of a heatmap's best tile: the ink on it stays readable


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    found: Mapping[tuple[int, int], tuple[str, str]],
    strength: Mapping[tuple[int, int], float],
    best: tuple[int, int] | None,
    labels: tuple[str, str],
    title: str,
) -> tuple[Markup, int]:
    """A grid of numbers: (text, tooltip) by row and column, coloured by ``strength`` from 0 to 1.

    Returns the figure and its natural width in pixels. An empty name in ``labels`` hides that axis.
    """
    across, down = 78, 38
    widest = max(len(cut(name)) for name in (*rows, labels[0]))
    left = 2 + (14 + 7 * widest) * bool(labels[0])
    width, height = left + across * len(columns) + 4, 46 + down * len(rows) + 4
    parts = [f'<text class="name" x="{left + 2}" y="12">{label_text(labels[1], 40)}</text>']
    side = [(34.0, "name", labels[0]), *((46 + down * (i + 0.5), "", name) for i, name in enumerate(rows))]
    for y, style, name in side if labels[0] else ():
        dy = "" if style else ' dy=".35em"'
        parts.append(
            f'<text class="{style}" x="{left - 7}" y="{y:g}"{dy} text-anchor="end">{label_text(name)}</text>'
        )
    for j, name in enumerate(columns):
        x = left + across * (j + 0.5)
        parts.append(f'<text x="{x:.0f}" y="34" text-anchor="middle">{label_text(name)}</text>')
    for i in range(len(rows)):
        for j in range(len(columns)):
            text, tip = found.get((i, j), ("–", "no such cell"))
            share = strength.get((i, j))
            fill = f'fill-opacity="{0.06 + (_STRONGEST - 0.06) * share:.3f}"' if share is not None else ""
            kind = "tile" + " best" * ((i, j) == best) + " none" * (share is None)
            x, y = left + across * j, 46 + down * i
            parts.append(
                f'<g class="{kind}"><title>{escape(tip)}</title>'
                f'<rect x="{x + 1}" y="{y + 1}" width="{across - 2}" height="{down - 2}" rx="2" {fill}/>'
                f'<text x="{x + across / 2:.0f}" y="{y + down / 2:.0f}" dy=".35em" text-anchor="middle">'
                f"{escape(text)}</text></g>"
            )
    description = f"{len(rows)} rows, {len(columns)} columns"
    return svg_element(parts, (width, height), title, description, "heat"), width


@dataclass(frozen=True)
class Strand:
    """One group in the parallel coordinates: the number of its value on each axis, and its score."""

    name: str
    levels: Sequence[int | None]
    score: float


def parallel(
    axes: Sequence[tuple[str, Sequence[str]]],
    strands: Sequence[Strand],
    metric: str,
    higher: bool,
    title: str,
) -> tuple[Markup, int]:
    """Every group a line over its values to its score, the best at the top of the last axis.

    ``strands`` come best first. Returns the figure and its natural width in pixels.
    """
    across, top, tall = 150, 34, 220
    name, levels = axes[0]
    left = max(16 + 7 * max(len(cut(level)) for level in levels), 4 * len(cut(name, 20)))
    width, height = left + across * len(axes) + 70, top + tall + 14
    scores = [strand.score for strand in strands]
    low, high = min(scores), max(scores)
    end = left + across * len(axes)

    def height_of(score: float) -> float:
        share = (score - low) / (high - low) if high > low else 0.5
        return top + tall * (1 - share if higher else share)

    parts = []
    for n, strand in reversed(list(enumerate(strands))):
        spots = [
            f"{left + across * k},{top + tall * (1 - _share(level, len(axes[k][1]))):.1f}"
            for k, level in enumerate(strand.levels)
            if level is not None
        ]
        spots.append(f"{end},{height_of(strand.score):.1f}")
        good = 1 - _share(n, len(strands)) if len(strands) > 1 else 1.0
        colour = f"color-mix(in oklab, var(--series-1) {100 * good**1.5:.0f}%, var(--rule))"
        tip = escape(f"{strand.name}: {format_value(strand.score)}")
        parts.append(
            f'<g class="line{" best" * (n == 0)}" style="--c:{colour}"><title>{tip}</title>'
            f'<path d="M{"L".join(spots)}"/></g>'
        )
    for n, (name, levels) in enumerate([*axes, (metric, ())]):
        parts.append(_parallel_axis(left + across * n, top, tall, name, levels))
    values = [value for value in ticks(low, high, 5) if low <= value <= high] if high > low else [low]
    for value, text in zip(values, tick_labels(values), strict=True):
        parts.append(f'<text x="{end + 8}" y="{height_of(value):.1f}" dy=".35em">{text}</text>')
    description = f"best: {strands[0].name}, {format_value(strands[0].score)}"
    return svg_element(parts, (width, height), title, description, "parallel"), width


def _parallel_axis(x: int, top: int, tall: int, name: str, levels: Sequence[str]) -> str:
    """An axis with its name on top and at most about twelve of its values on the left."""
    parts = [f'<path class="rule axis" d="M{x},{top}v{tall}"/>']
    parts.append(f'<text class="name" x="{x}" y="14" text-anchor="middle">{label_text(name, 20)}</text>')
    for k in range(0, len(levels), math.ceil(len(levels) / 12) or 1):
        y = top + tall * (1 - _share(k, len(levels)))
        parts.append(
            f'<text x="{x - 7}" y="{y:.1f}" dy=".35em" text-anchor="end">{label_text(levels[k])}</text>'
        )
    return "".join(parts)


def _share(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 0.5
