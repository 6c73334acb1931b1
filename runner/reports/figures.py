"""The drawing engine of all reports: curves and intervals as inline SVG, and what other figures are made of.

Colours and fonts come from the CSS of ``report.html.j2``, so that a figure follows the page's light or dark
scheme. A figure has no ids, links or scripts; its name stands in ``aria-label``, its content in ``<desc>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from markupsafe import Markup

from runner.reports.number_format import format_value
from runner.reports.scales import log_ticks, tick_labels, ticks, y_limits

_MOST_POINTS, _FEW_POINTS = 600, 160  # of a line; the fewer where a figure has more than four lines
_DOTTED = 12  # a line of so few points has a dot on each
_TOP, _RIGHT, _BOTTOM, _MARGIN = 12, 12, 36, 6  # pixels; a dot on the frame's edge keeps its margin
_CHARACTER = 6.8  # widest digit of the labels, 12 pixels high

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a figure; a point whose y is not finite is a gap.

    ``kind`` are CSS classes (``best``, ``partial``) and ``data`` the ``data-`` attributes that the page's
    script reads. A line that is not ``complete`` does not decide the frame; ``broken`` ends with a cross.
    """

    name: str
    points: Sequence[Point]
    colour: str = "var(--series-1)"
    kind: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    markers: bool = False
    complete: bool = True
    broken: bool = False

    @property
    def finite(self) -> list[Point]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(y)]


@dataclass(frozen=True)
class LineFigure:
    """A drawn figure, and what its caption should say of the vertical axis (empty: nothing)."""

    svg: Markup
    comment: str


@dataclass(frozen=True)
class _Frame:
    """Where values are drawn: the plot's rectangle in pixels, and the values at its edges."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    across: tuple[float, float]
    up: tuple[float, float]
    log: bool

    def x(self, value: float) -> float:
        left, _, right, _ = self.box
        first, last = self.across
        return left + (right - left) * (value - first) / (last - first)

    def y(self, value: float) -> float:
        _, top, _, bottom = self.box
        low, high = self.up
        if self.log:
            share = math.log(value / low) / math.log(high / low) if value > 0 else -2.0
        else:
            share = (value - low) / (high - low)
        share = min(max(share, -2.0), 3.0)  # far outside is cut off anyhow, and keeps the numbers short
        return bottom - (bottom - top) * share


def line_figure(
    lines: Sequence[Line],
    title: str,
    *,
    bad: Sequence[float] = (),
    may_log: bool = True,
    size: tuple[int, int] = (400, 220),
    kind: str = "",
) -> LineFigure:
    """Lines over the training step; the steps in ``bad``, whose values are not finite, are marked.

    The vertical axis is logarithmic or cut where the first steps would squash the rest (``y_limits``).
    """
    steps = [x for line in lines for x, _ in line.points] + list(bad)
    last = max(steps, default=1.0)
    first = min(steps, default=0.0)
    if first == last or 0 <= first <= last / 2:
        first = min(0.0, first)
    last = last if last > first else first + 1
    limits = y_limits([line.finite for line in lines if line.complete], may_log=may_log)
    if limits is None:
        limits = y_limits([line.finite for line in lines], may_log=may_log)
    low, high, log = limits or (0.0, 1.0, False)
    up = (log_ticks(low, high) if log else ticks(low, high, 5)) if limits else []
    labels = [format_value(value) for value in up] if log else tick_labels(up)
    width, height = size
    left = 12 + _CHARACTER * max(map(len, labels), default=0)
    frame = _Frame((left, _TOP, width - _RIGHT, height - _BOTTOM), (first, last), (low, high), log)
    parts = [_axes(frame, list(zip(up, labels, strict=True)), width, height)]
    right, bottom = width - _RIGHT, height - _BOTTOM
    # a nested svg clips what lies outside without an id; its coordinates are those of the figure
    x, y, w, h = left - _MARGIN, _TOP - _MARGIN, right - left + 2 * _MARGIN, bottom - _TOP + 2 * _MARGIN
    view = f"{x:.1f} {y:.1f} {w:.1f} {h:.1f}"
    parts.append(f'<svg x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" viewBox="{view}">')
    most = _MOST_POINTS if len(lines) <= 4 else _FEW_POINTS
    parts += [_line(line, frame, most) for line in sorted(lines, key=lambda line: "best" in line.kind)]
    parts.append("</svg>")
    for step in bad[:50]:
        spot = frame.x(step)
        parts.append(f'<path class="bad dashed" d="M{spot:.1f},{_TOP}V{bottom}"/>')
        parts.append(f'<path class="bad" d="{_cross(spot, _TOP)}"/>')
    comments = ["log scale"] if log else []
    if outside := [x for line in lines for x, y in line.finite if not low <= y <= high]:
        early = max(outside) <= first + (last - first) / 10
        comments.append("first steps cut off" if early else "values outside the frame cut off")
    return LineFigure(svg_element(parts, size, title, _description(lines), kind), ", ".join(comments))


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about ``most`` points: the lowest, the highest and a gap of each stretch, and the last one."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points) - 1, size):
        part = range(start, min(start + size, len(points) - 1))
        finite = [n for n in part if math.isfinite(points[n][1])]
        gaps = [n for n in part if not math.isfinite(points[n][1])][:1]
        finite.sort(key=lambda n: points[n][1])
        kept += [points[n] for n in sorted({*finite[:1], *finite[-1:], *gaps})]
    return [*kept, points[-1]]


def _axes(frame: _Frame, up: Sequence[tuple[float, str]], width: int, height: int) -> str:
    """Horizontal rules with their values, and steps below."""
    left, _, right, bottom = frame.box
    parts = [f'<path class="rule axis" d="M{left:.1f},{bottom}H{right}"/>']
    for value, text in up:
        y = frame.y(value)
        parts.append(f'<path class="rule" d="M{left:.1f},{y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 7:.1f}" y="{y:.1f}" dy=".35em" text-anchor="end">{text}</text>')
    steps = ticks(*frame.across, 5, whole=True)
    for value in steps:
        x = frame.x(value)
        text = format_value(value)
        # the last label ends with the figure instead of being cut off
        over = x + _CHARACTER * len(text) / 2 > width
        anchor = f'x="{width}" text-anchor="end"' if over else f'x="{x:.1f}" text-anchor="middle"'
        parts.append(f'<text {anchor} y="{bottom + 17}">{text}</text>')
    parts.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 3}" text-anchor="middle">step</text>')
    return "".join(parts)


def _line(line: Line, frame: _Frame, most: int) -> str:
    points = thin(line.points, most)
    drawn = [math.isfinite(y) for _, y in points]
    spots = [f"{frame.x(x):.1f},{frame.y(y):.1f}" if math.isfinite(y) else "" for x, y in points]
    path, dots = "", ""
    all_dotted = line.markers or sum(drawn) <= _DOTTED
    for n, spot in enumerate(spots):
        if spot:
            joined = n > 0 and drawn[n - 1]
            path += f"{'L' if joined else 'M'}{spot}"
            alone = not joined and (n + 1 == len(spots) or not drawn[n + 1])
            dots += f"M{spot}h0" if all_dotted or alone else ""
    finite = line.finite
    text = f"{line.name}: last {format_value(finite[-1][1])}" if finite else line.name
    cross = ""
    if line.broken and finite:
        x, y = finite[-1]
        cross = f'<path class="bad cross" d="{_cross(frame.x(x), max(frame.y(y), _TOP + 4))}"/>'
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in line.data.items())
    kind = f"line {line.kind}".strip()
    return (
        f'<g class="{kind}"{data} style="--c:{line.colour}"><title>{escape(text)}</title>'
        f'<path d="{path}"/>' + (f'<path class="dots" d="{dots}"/>' if dots else "") + f"{cross}</g>"
    )


def _cross(x: float, y: float) -> str:
    return f"M{x:.1f},{y:.1f}m-4,-4l8,8m0,-8l-8,8"


def _description(lines: Sequence[Line]) -> str:
    """Begin and end of a few lines in words, of many their range."""
    ends = [(line.name, line.finite[0], line.finite[-1]) for line in lines if line.finite]
    if len(ends) > 4:
        values = [last[1] for _, _, last in ends]
        low, high = format_value(min(values)), format_value(max(values))
        return f"{len(ends)} lines, whose last values lie between {low} and {high}"
    return "; ".join(
        f"{name} from {format_value(first[1])} at step {format_value(first[0])}"
        f" to {format_value(last[1])} at step {format_value(last[0])}"
        for name, first, last in ends
    )


def interval_figure(value: float, low: float, high: float, tone: str, title: str) -> Markup:
    """A difference with its interval about zero, the middle; its scale is its own. Empty if not finite."""
    reach = max(abs(value), abs(low), abs(high))
    if not 0 < reach < math.inf:
        return Markup("")
    at = {name: 50 + 46 * number / reach for name, number in (("v", value), ("l", low), ("h", high))}
    parts = [
        '<path class="rule axis" d="M50,1V15"/>',
        f'<g class="span {tone}"><path d="M{at["l"]:.1f},8H{at["h"]:.1f}"/>'
        f'<path class="dots" d="M{at["v"]:.1f},8h0"/></g>',
    ]
    return svg_element(parts, (100, 16), title, "", "interval")


def cut(text: str, most: int = 13) -> str:
    """A text of at most ``most`` characters, an ellipsis in the place of the rest."""
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


def label_text(text: str, most: int = 13) -> str:
    """Text of a label, with all of it as a tooltip when it is cut."""
    short = cut(text, most)
    return escape(short) + (f"<title>{escape(text)}</title>" if short != text else "")


def svg_element(
    parts: Sequence[str], size: tuple[int, int], title: str, description: str, kind: str
) -> Markup:
    """A figure of ``parts``: natural size in pixels, name, ``description`` for screen readers, CSS class."""
    width, height = size
    return Markup(
        f'<svg class="{f"plot {kind}".strip()}" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(title)}">'
        + (f"<desc>{escape(description)}</desc>" if description else "")
        + "".join(parts)
        + "</svg>"
    )
