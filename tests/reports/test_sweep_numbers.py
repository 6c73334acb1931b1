"""What the figures of a sweep's report are made of: effects of axes, smoothed curves, ticks."""

from __future__ import annotations

import random
from typing import Any

import pytest

from runner.reports.importance import importance
from runner.reports.scales import log_ticks, tick_labels, ticks
from runner.reports.series import points_of, smooth


def test_the_importance_of_an_axis_is_its_share_of_the_variance() -> None:
    values = [{"a": str(a), "b": str(b)} for a in range(3) for b in range(4)]
    scores = [3.0 * int(cell["a"]) + int(cell["b"]) for cell in values]
    found = importance(values, scores)
    shares = {effect.axes: effect.share for effect in found.effects}
    # of a full grid: 4 x var of (0, 3, 6) against 3 x var of (0, 1, 2, 3)
    assert shares == {("a",): pytest.approx(72 / 87), ("b",): pytest.approx(15 / 87)}
    assert found.rest == pytest.approx(0, abs=1e-9)
    assert [effect.by_chance for effect in found.effects] == pytest.approx([2 / 11, 3 / 11])
    gaps = importance(values[1:], scores[1:])
    assert gaps.rest == pytest.approx(0, abs=1e-9), "an additive metric stays additive when a cell is missing"


def test_axes_that_change_together_are_one_effect() -> None:
    values = [{"r": str(r), "alpha": str(2 * r), "seed": str(s)} for r in (4, 8) for s in (0, 1, 2)]
    found = importance(values, [1.0, 1.1, 1.0, 2.0, 2.1, 2.0])
    assert found.effects[0].axes == ("r", "alpha")
    nested = [{"a": str(n // 2), "b": str(n)} for n in range(4) for _ in range(2)]
    assert "cannot be separated from the other axes" in importance(nested, [1, 2, 3, 4, 5, 6, 7, 9]).why_not


def test_a_share_of_chance_is_what_noise_explains() -> None:
    draw = random.Random(2)
    values = [{"a": str(a), "b": str(b)} for a in range(3) for b in range(4)]
    found = [importance(values, [draw.gauss(0, 1) for _ in values]) for _ in range(300)]
    for axis, expected in (("a", 2 / 11), ("b", 3 / 11)):
        shares = [effect.share for one in found for effect in one.effects if effect.axes == (axis,)]
        assert sum(shares) / len(shares) == pytest.approx(expected, abs=0.03)


def test_curves_are_smoothed() -> None:
    assert smooth([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0)]
    nan = float("nan")
    (_, first), (_, gap), (_, last) = smooth([(1, 1.0), (2, nan), (3, 5.0)], 3)
    assert (first, last) == (1.0, 3.0)
    assert gap != gap


def test_a_loss_of_null_is_a_gap_and_the_last_line_of_a_step_wins() -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": 3.0, "lr": None},
        {"step": 2, "loss": None, "lr": 1},
        {"step": 2, "eval_loss": 2.5, "loss": None},
        {"step": 3, "loss": 9.0},
        {"step": 3, "loss": 2.0},
        {"step": None, "loss": 7.0},
        {"loss": 1.5},
    ]
    found = points_of(lines, "loss")
    assert [(x, y) for x, y in found if y == y] == [(1, 3.0), (3, 2.0), (7, 1.5)]
    assert [x for x, y in found if y != y] == [2]
    assert points_of(lines, "eval_loss") == [(2, 2.5)]
    assert points_of(lines, "lr") == [(2, 1.0)]


def test_ticks_are_round() -> None:
    assert ticks(0.42, 0.47, 5) == [0.42, 0.43, 0.44, 0.45, 0.46, 0.47]
    assert ticks(0, 3, 5, whole=True) == [0, 1, 2, 3]
    assert ticks(1, 1, 5) == [1]
    assert log_ticks(0.01, 4) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    assert log_ticks(0.6, 0.9) == [0.6, 0.7, 0.8, 0.9]
    assert tick_labels([0.45, 0.5, 0.55]) == ["0.45", "0.50", "0.55"]
    assert tick_labels([0, 5e-5, 1e-4, 1.5e-4]) == ["0", "0.5e−4", "1e−4", "1.5e−4"]
    assert tick_labels([-1, 0, 1000]) == ["−1", "0", "1,000"]
