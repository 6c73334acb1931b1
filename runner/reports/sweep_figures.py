"""The figures of a sweep's report as inline SVG: loss curves, heatmap, parallel coordinates.

Colours are the page's CSS variables. Lines carry numbers only (``data-cell``, ``data-levels``), by which the
page's script shows and hides them; names stand in ``<title>``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from runner.reports.figures import format_value

POINTS = 160  # of a curve, after smoothing
_COLOURS = 6  # the page's --series-1 to --series-6
_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 34
_STRONGEST = 0.55  # of the heatmap's colour, so that the ink on it stays readable

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One cell's line; ``levels`` are the numbers of its values of the axes, ``broken`` marks its end."""

    cell: int
    name: str
    points: Sequence[Point]
    levels: Sequence[int]
    colour: str
    best: bool = False
    complete: bool = True
    broken: bool = False


def colours(count: int) -> list[str]:
    """A CSS colour for each of so many values: the page's own, or steps between two where they run out."""
    if count <= _COLOURS:
        return [f"var(--series-{n + 1})" for n in range(count)]
    shares = [round(100 * n / (count - 1)) for n in range(count)]
    return [f"color-mix(in oklab, var(--series-2) {share}%, var(--series-1))" for share in shares]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """A trailing mean over ``window`` points, thinned to ``POINTS`` with the last one kept."""
    values = [y for _, y in points]
    means = []
    for n, (x, _) in enumerate(points):
        part = values[max(0, n + 1 - window) : n + 1]
        means.append((x, math.fsum(part) / len(part)))
    every = max(1, math.ceil(len(means) / POINTS))
    return means[::-1][::every][::-1]


def curve_figure(curves: Sequence[Curve], title: str, clip: str) -> Markup:
    """Overlaid curves; the frame fits what completed cells do after the first tenth of the steps."""
    last = max((x for curve in curves for x, _ in curve.points), default=1.0) or 1.0
    fitting = [curve for curve in curves if curve.complete] or list(curves)
    late = [y for curve in fitting for x, y in curve.points if x >= last / 10]
    late = late or [y for curve in fitting for _, y in curve.points] or [0.0, 1.0]
    low, high = min(late), max(late)
    log = low > 0 and high > 50 * low
    pad = 0.0 if log else (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> str:
        share = (
            (math.log(y / low) / math.log(high / low) if y > 0 else 0.0) if log else (y - low) / (high - low)
        )
        inner = _WIDTH - _LEFT - _RIGHT
        # far outside the frame is cut off anyhow, and keeps the numbers short
        share = min(max(share, -2.0), 3.0)
        return f"{_LEFT + inner * x / last:.1f},{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share):.1f}"

    parts = [_frame(low, high, log, last, place)]
    parts.append(
        f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP - 4}" width="{_WIDTH - _LEFT - _RIGHT + 6}"'
        f' height="{_HEIGHT - _TOP - _BOTTOM + 6}"/></clipPath><g clip-path="url(#{clip})">'
    )
    parts += [_curve(curve, place) for curve in sorted(curves, key=lambda curve: curve.best)]
    parts.append("</g>")
    return _svg(parts, _WIDTH, _HEIGHT, title, "curves")


def _curve(curve: Curve, place: Callable[[float, float], str]) -> str:
    places = [place(x, y) for x, y in curve.points]
    kind = "line" + " best" * curve.best + " partial" * (not curve.complete)
    text = f"{curve.name}: last {format_value(curve.points[-1][1])}" if places else curve.name
    dots = "".join(f"M{spot}h0" for spot in places) if len(places) <= 12 else ""
    cross = ""
    if curve.broken and places:
        x, y = map(float, places[-1].split(","))
        cross = f'<path class="cross" d="M{x:g},{max(y, _TOP + 4):g}m-4,-4l8,8m0,-8l-8,8"/>'
    return (
        f'<g class="{kind}" data-cell="{curve.cell}" data-levels="{" ".join(map(str, curve.levels))}"'
        f' style="--c:{curve.colour}"><title>{escape(text)}</title>'
        f'<path d="M{"L".join(places)}"/>'
        + (f'<path class="dots" d="{dots}"/>' if dots else "")
        + f"{cross}</g>"
    )


def _frame(low: float, high: float, log: bool, last: float, place: Callable[[float, float], str]) -> str:
    parts = []
    for value in log_ticks(low, high) if log else ticks(low, high, 5):
        y = place(0, value).split(",")[1]
        parts.append(f'<path class="rule" d="M{_LEFT},{y}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 7}" y="{y}" dy=".35em" text-anchor="end">{format_value(value)}</text>'
        )
    for value in ticks(0, last, 5, whole=True):
        x = place(value, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{_HEIGHT - 18}" text-anchor="middle">{format_value(value)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 2}" text-anchor="middle">step</text>')
    return "".join(parts)


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
    widest = max(len(_cut(name)) for name in (*rows, labels[0]))
    left = 2 + (14 + 7 * widest) * bool(labels[0])
    width, height = left + across * len(columns) + 4, 46 + down * len(rows) + 4
    parts = [f'<text class="name" x="{left + 2}" y="12">{_titled(labels[1], 40)}</text>']
    if labels[0]:
        parts.append(
            f'<text class="name" x="{left - 7}" y="34" text-anchor="end">{_titled(labels[0])}</text>'
        )
    for j, name in enumerate(columns):
        x = left + across * (j + 0.5)
        parts.append(f'<text x="{x:.0f}" y="34" text-anchor="middle">{_titled(name)}</text>')
    for i, name in enumerate(rows):
        y = 46 + down * i
        if labels[0]:
            parts.append(
                f'<text x="{left - 7}" y="{y + down / 2}" dy=".35em" text-anchor="end">{_titled(name)}</text>'
            )
        for j in range(len(columns)):
            text, tip = found.get((i, j), ("–", "no such cell"))
            share = strength.get((i, j))
            fill = f'fill-opacity="{0.06 + (_STRONGEST - 0.06) * share:.3f}"' if share is not None else ""
            kind = "tile" + " best" * ((i, j) == best) + " none" * (share is None)
            x = left + across * j
            parts.append(
                f'<g class="{kind}"><title>{escape(tip)}</title>'
                f'<rect x="{x + 1}" y="{y + 1}" width="{across - 2}" height="{down - 2}" rx="2" {fill}/>'
                f'<text x="{x + across / 2:.0f}" y="{y + down / 2:.0f}" dy=".35em" text-anchor="middle">'
                f"{escape(text)}</text></g>"
            )
    return _svg(parts, width, height, title, "heat"), width


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

    ``strands`` come best first. Returns the figure and its natural width.
    """
    across, top, tall = 150, 34, 220
    left, width, height = 60, 60 + across * len(axes) + 70, top + tall + 14
    scores = [strand.score for strand in strands]
    low, high = min(scores), max(scores)
    parts = []

    def height_of(score: float) -> float:
        share = (score - low) / (high - low) if high > low else 0.5
        return top + tall * (1 - share if higher else share)

    x = left + across * len(axes)
    for n, strand in reversed(list(enumerate(strands))):
        spots = [
            f"{left + across * k},{top + tall * (1 - _share(level, len(axes[k][1]))):.1f}"
            for k, level in enumerate(strand.levels)
            if level is not None
        ]
        spots.append(f"{x},{height_of(strand.score):.1f}")
        good = 1 - _share(n, len(strands)) if len(strands) > 1 else 1.0
        colour = f"color-mix(in oklab, var(--series-1) {100 * good**1.5:.0f}%, var(--rule))"
        tip = escape(f"{strand.name}: {format_value(strand.score)}")
        parts.append(
            f'<g class="line{" best" * (n == 0)}" style="--c:{colour}"><title>{tip}</title>'
            f'<path d="M{"L".join(spots)}"/></g>'
        )
    for n, (name, levels) in enumerate([*axes, (metric, ())]):
        place = left + across * n
        parts.append(f'<path class="rule axis" d="M{place},{top}v{tall}"/>')
        parts.append(f'<text class="name" x="{place}" y="14" text-anchor="middle">{_titled(name, 20)}</text>')
        every = math.ceil(len(levels) / 12) or 1
        for k in range(0, len(levels), every):
            y = top + tall * (1 - _share(k, len(levels)))
            parts.append(
                f'<text x="{place - 7}" y="{y:.1f}" dy=".35em" text-anchor="end">{_titled(levels[k])}</text>'
            )
    for value in ticks(low, high, 5) if high > low else [low]:
        if low <= value <= high:
            y = height_of(value)
            parts.append(f'<text x="{x + 8}" y="{y:.1f}" dy=".35em">{format_value(value)}</text>')
    return _svg(parts, width, height, title, "parallel"), width


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers between two bounds, at most about ``most`` of them."""
    if not (math.isfinite(high - low) and high > low):
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive bounds, with 2 and 5 times these where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [10.0**power * n for power in powers for n in factors if low <= 10.0**power * n <= high]


def _share(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 0.5


def _cut(text: str, most: int = 13) -> str:
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


def _titled(text: str, most: int = 13) -> str:
    """Text of a label, with all of it as a tooltip when it is cut."""
    short = _cut(text, most)
    return escape(short) + (f"<title>{escape(text)}</title>" if short != text else "")


def _svg(parts: Sequence[str], width: int, height: int, title: str, kind: str) -> Markup:
    return Markup(
        f'<svg class="plot {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
