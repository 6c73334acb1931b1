"""The report of a sweep: what a reader finds there, whatever the sweep lacks, on a page of its own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.pages import HOSTILE
from helpers.pages import words_of as all_words_of
from helpers.sweep_folder import SAMPLE, cell, grid, make_sweep, many, repeats, scattered, write_lines
from runner.reports.sweep_report import write_sweep_report


def page_of(folder: Path) -> str:
    """Write the report and return its text."""
    return write_sweep_report(folder).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What a reader sees, which the script is not."""
    return all_words_of(re.sub(r"<script>.*?</script>", "", page, flags=re.S))


def sections(page: str) -> set[str]:
    """The sections that a page has."""
    return set(re.findall(r'<section id="([^"]+)"', page))


def test_the_page_tells_the_sweep(tmp_path: Path) -> None:
    page = page_of(grid(tmp_path))
    words = words_of(page)
    for expected in (
        "Sweep over r × learning_rate · completed Sweep report",
        "sft tiny 28 cells 5 min 0 s",
        "24 completed 1 dropped 1 diverged 2 failed",
        "r=16, learning_rate=3e-3 is best: held-out loss 0.4",
        "over 2 repeats. Each other is worse by more than noise.",
        f"python -m runner recipe=chat adapter={tmp_path}",
        "Held-out loss decides, lower is better.",
        "two-sided t test at 95% on the difference to the best at equal seeds",
        "The same in all rows: exact match 90.0 % ± 0.0",
        "Colour by",
        "main-effects analysis of variance over 24 completed cells",
        "Base ✕ no match Sure! Best cell ✓ match {}",
        "failed, OutOfMemoryError : no memory",
        "r=64, learning_rate=3e-4, after step 9",
        "Traceback: line 41",
        "r=64, learning_rate=1e-3 at step 30 (50% of the run): held-out loss 1.5, number 2 of 2",
        "python -m runner -m lora.r=8,16",
        "torch 2.13.0",
        "Name test machine",
    ):
        assert expected in words, expected
    assert sections(page) == {
        *("leaderboard", "curves", "heatmap", "parallel", "importance", "samples"),
        *("failures", "dropped", "jobs", "settings", "environment"),
    }
    assert words.index("is best") < words.index("Leaderboard")
    failures = words.partition(" Failures ")[2].partition(" Dropped ")[0]
    assert failures.count("no memory") == 2, "the same error of several cells is told once"
    assert page.count("Traceback: line 41") == 2


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = page_of(grid(tmp_path))
    assert not re.search(r"https?:|<link|<iframe|@import|xmlns|url\((?!#)| on[a-z]+=|<script[^>]", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all((tmp_path / link.replace("%3D", "=").replace("%2C", ",")).is_file() for link in links)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "no other script may run"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["report.html", "sweep.json"]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    grid(tmp_path)
    assert page_of(tmp_path) == page_of(tmp_path)


def test_markup_is_shown_as_text(tmp_path: Path) -> None:
    error = dict.fromkeys(("type", "message", "traceback"), HOSTILE)
    cells = [
        cell("a=1", 0.5, steps=5, metrics={f"{HOSTILE}_after": 1.0}, model={"path": HOSTILE}),
        cell("a=2", 0.6, steps=5, device={HOSTILE: HOSTILE}),
        cell("a=3", status="failed", error=error),
        cell("a=4", status="failed", reason=HOSTILE),
        cell("a=5", status="dropped", dropped=dict.fromkeys(("step", "eval_loss", "rank"), HOSTILE)),
    ]
    for n, item in enumerate(cells):
        item["entry"]["overrides"] = {HOSTILE: f"{HOSTILE}{n}", f"x.{HOSTILE}": str(n % 2)}
    jobs = [{"name": HOSTILE, "cells": ["a=1"], "alone": HOSTILE}]
    axes = {HOSTILE: [], f"x.{HOSTILE}": []}
    settings = {"metric": "eval_loss", HOSTILE: HOSTILE}
    folder = make_sweep(
        tmp_path, cells, command=HOSTILE, status=HOSTILE, jobs=jobs, axes=axes, settings=settings
    )
    write_lines(folder / "a=1" / "samples.jsonl", [dict.fromkeys(SAMPLE, HOSTILE)])
    page = page_of(folder)
    assert page.count("<script") == 1
    assert "<img" not in page
    assert words_of(page).count(HOSTILE) > 20


def nothing(folder: Path) -> Path:
    """An empty folder."""
    return folder


def one_cell(folder: Path) -> Path:
    """One cell and no axis."""
    return make_sweep(folder, [cell("only", 0.5, steps=10)])


def one_axis(folder: Path) -> Path:
    """One axis, one run a value."""
    return make_sweep(folder, [cell(f"lora.r={n}", 0.5 + n / 100, steps=10) for n in (4, 8, 16)])


def none_completed(folder: Path) -> Path:
    """Cells that failed or wait."""
    failed = [cell(f"lora.r={n}", status="failed", error={"message": "no"}) for n in (4, 8)]
    return make_sweep(folder, [*failed, cell("lora.r=16", status="waiting")], status="running")


def not_finite(folder: Path) -> Path:
    """Metrics and losses that are NaN, infinite or missing."""
    cells = [cell(f"a={n}", value, steps=3) for n, value in enumerate((float("nan"), float("inf"), None))]
    make_sweep(folder, cells)
    for item, value in zip(folder.glob("*/metrics.jsonl"), ("NaN", "1e300", "null"), strict=True):
        item.write_text(f'{{"step": 1, "loss": {value}}}\n{{"step": null, "loss": 1}}\n{{"ste')
    return folder


def strings(folder: Path) -> Path:
    """Axes of words."""
    return make_sweep(
        folder,
        [
            cell(f"quantization={q},lora={lora}", 0.5, steps=4)
            for q in ("nf4", "none")
            for lora in ("r8", "r64")
        ],
    )


def no_held_out_rows(folder: Path) -> Path:
    """Cells that were never evaluated."""
    folder = make_sweep(folder, [cell(f"lora.r={n}", None, steps=3) for n in (4, 8)])
    for file in folder.glob("*/metrics.jsonl"):
        file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return folder


def equal(folder: Path) -> Path:
    """Cells that all come out the same, and flat curves."""
    folder = make_sweep(folder, [cell(f"a={n},b={m}", 0.0, steps=2) for n in (1, 2) for m in (1, 2)])
    for file in folder.glob("*/metrics.jsonl"):
        file.write_text('{"step": 0, "loss": 0.0}\n')
    return folder


ALWAYS = {"settings"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("make", "present", "said"),
    [
        (nothing, set(), "No cell has a result."),
        (one_cell, {"leaderboard", "curves", "jobs"}, "only one with a result"),
        (
            one_axis,
            {"leaderboard", "curves", "heatmap", "parallel", "importance", "jobs"},
            "cannot be separated from noise",
        ),
        (
            none_completed,
            {"leaderboard", "failures", "jobs"},
            "No cell has a result yet: 2 failed, 1 waiting.",
        ),
        (not_finite, {"leaderboard", "jobs"}, "No completed cell has a finite eval_loss: 3 completed."),
        (
            strings,
            {"leaderboard", "curves", "heatmap", "parallel", "importance", "jobs"},
            "all cells score the same",
        ),
        (no_held_out_rows, {"leaderboard", "curves", "jobs"}, "run.json has no eval_loss"),
        (many, {"leaderboard", "curves", "heatmap", "parallel", "importance", "jobs"}, "64 cells"),
        (scattered, {"leaderboard", "parallel", "importance", "jobs"}, "cannot be separated from noise"),
        (
            equal,
            {"leaderboard", "curves", "heatmap", "parallel", "importance", "jobs"},
            "all cells score the same",
        ),
    ],
)
def test_no_part_breaks_when_something_is_missing(
    tmp_path: Path, make: Callable[[Path], Path], present: set[str], said: str
) -> None:
    page = page_of(make(tmp_path))
    assert page.rstrip().endswith("</html>")
    assert sections(page) == present | ALWAYS
    assert said in words_of(page)
    assert not re.search(r"[\d\"(,-]nan|\binf\b", page), "no figure has a coordinate that is no number"


def test_only_some_of_the_others_may_be_within_noise(tmp_path: Path) -> None:
    cells = [*repeats("a=1", 0.50, 0.51), *repeats("a=2", 0.515, 0.505), *repeats("a=3", 0.9, 0.91)]
    words = words_of(page_of(make_sweep(tmp_path / "some", cells)))
    assert "1 of 2 others is within noise of it: a=2." in words
    words = words_of(page_of(make_sweep(tmp_path / "unknown", [cell("a=1", 0.5), cell("a=2", 0.6)])))
    assert (
        "Whether any other is as good is not known: the loss of single held-out rows is not known." in words
    )


def test_the_heatmap_has_a_mean_in_every_field_and_one_map_a_pair(tmp_path: Path) -> None:
    cells = [
        cell(f"a={a},b={b},c={c}", a + b / 10 + c / 100) for a in (1, 2) for b in (1, 2, 3) for c in (1, 3)
    ]
    page = page_of(make_sweep(tmp_path, cells))
    assert re.findall(r"<option[^>]*>([^<]+ × [^<]+)", page) == ["a × b", "c × b", "a × c"]
    tiles = re.findall(r'<g class="(tile[^"]*)"><title>([^<]*)</title>.*?>([\d.]+)</text>', page)
    assert len(tiles) == 6 + 6 + 4
    assert tiles[0] == ("tile best", "Held-out loss 1.1200, mean of 2", "1.1200")
    assert [text for _, _, text in tiles[:6]] == ["1.1200", "1.2200", "1.3200", "2.1200", "2.2200", "2.3200"]


def test_every_cell_has_a_line_with_its_values(tmp_path: Path) -> None:
    page = page_of(grid(tmp_path))
    training = re.search(r'<svg class="plot curves".*?</svg>', page, flags=re.S)
    assert training
    lines = re.findall(r'<g class="(line[^"]*)" data-cell="(\d+)" data-levels="([\d -]+)"', training[0])
    assert len(lines) == 28
    assert len({number for _, number, _ in lines}) == 28
    assert {len(levels.split()) for _, _, levels in lines} == {3}, "two axes and the status"
    assert [kind for kind, _, _ in lines].count("line best") == 1
    assert [kind for kind, _, _ in lines].count("line partial") == 4
    assert training[0].count('class="bad cross"') == 1
