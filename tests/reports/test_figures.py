"""The figures of a run's report: curves with gaps, peaks and readable values."""

from __future__ import annotations

import re
from typing import Any

import pytest

from runner.reports.figures import Line, line_figure, thin
from runner.reports.number_format import format_value


def test_a_figure_follows_the_page_and_says_what_it_shows() -> None:
    lines = [
        Line("a", [(1, 1.0), (2, 2.0), (3, 3.0)]),
        Line("<b>", [(1, 2.0)], colour="var(--series-2)"),
    ]
    svg = line_figure(lines, "a & b").svg
    assert svg.startswith('<svg class="plot" viewBox="0 0 400 220" role="img" aria-label="a &amp; b"><desc>')
    assert "a from 1 at step 1 to 3 at step 3; &lt;b&gt; from 2 at step 1" in svg
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert not re.search(r"#[0-9a-f]{3}|font-family| id=|href", svg)


def curve(values: list[float]) -> tuple[str, str]:
    """The path of a line over the steps from 1, and the figure's comment."""
    figure = line_figure([Line("a", list(enumerate(values, 1)))], "a")
    path = re.search(r'<g class="line".*?<path d="([^"]*)"', figure.svg)
    assert path
    return path[1], figure.comment


def heights(path: str) -> list[float]:
    """The vertical places of a path, in pixels from the top."""
    return [float(y) for y in re.findall(r",(-?[\d.]+)", path)]


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    nan = float("nan")
    path, _ = curve([3.0, 2.5, nan, 2.0, nan, 1.5, 1.0])
    assert re.sub(r"[\d.,]", "", path) == "MLMML"
    figure = line_figure([Line("a", [(n, nan if n in (20, 40) else 1.0) for n in range(60)])], "a")
    assert 'class="dots"' not in figure.svg


@pytest.mark.parametrize(
    ("values", "comment"),
    [
        ([3.0 - n / 30 for n in range(60)], ""),
        ([2.4 / n + 0.1 for n in range(1, 61)], "log scale"),
        ([11.0, 6.0, 3.0, *(2.5 - n / 200 for n in range(57))], "first steps cut off"),
        ([-9.0, -3.0, *(1 + n / 60 for n in range(58))], "first steps cut off"),
        ([1.0, 2.0, *[5.0] * 58], ""),
        ([1.0, 500.0] * 30, "log scale"),
    ],
)
def test_the_first_steps_do_not_squash_the_rest(values: list[float], comment: str) -> None:
    path, found = curve(values)
    assert found == comment
    late = heights(path)[6:]
    assert max(late) - min(late) > 30 or len(set(values[6:])) == 1, "a third of the figure, unless it is flat"
    shown = heights(path) if "cut off" not in comment else late
    assert all(12 <= y <= 184 for y in shown)


def test_thinning_keeps_peaks_gaps_and_the_end() -> None:
    points = [(float(n), 1.0) for n in range(5000)]
    points[1234], points[4000], points[77] = (1234.0, 9.0), (4000.0, -3.0), (77.0, float("nan"))
    kept = thin(points, 160)
    assert len(kept) < 170
    assert {points[1234], points[4000], points[0], points[-1]} <= set(kept)
    assert 77.0 in [x for x, _ in kept]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (None, "", "–"),
        (True, "", "yes"),
        (440, "rows", "440"),
        (51234, "tokens", "51,234"),
        (412.0, "", "412"),
        (0.2134, "train_loss", "0.2134"),
        (2e-5, "learning_rate", "2e−5"),
        (2.5e14, "", "2.5e14"),
        (-0.5, "", "−0.5"),
        (0.93, "exact_match", "93 %"),
        (1.5, "exact_match", "1.5"),
        (float("nan"), "loss", "NaN"),
        (59.96, "seconds", "1 min 0 s"),
        (3725, "train_seconds", "1 h 2 min"),
        (0, "peak_memory_bytes", "0 B"),
        (1734967296, "peak_memory_bytes", "1.62 GiB"),
        (["a", 1], "", "a, 1"),
        ({"a": {"b": 2}}, "", "a.b: 2"),
        (10**400, "", "∞"),
    ],
)
def test_values_read_well(value: Any, key: str, text: str) -> None:
    assert format_value(value, key) == text
