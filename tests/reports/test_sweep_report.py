"""The report of a sweep: what a reader finds there, whatever the sweep lacks, on a page of its own."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import CHROMIUM, CHROMIUM_FLAGS, HOSTILE, needs_chromium
from helpers.pages import words_of as all_words_of
from helpers.sweep_folder import cell, make_sweep, repeats, write_lines
from recipes import OBJECTIVES
from runner.cli.inherit import inherited
from runner.config.adapters import find_adapter
from runner.core.errors import ConfigError
from runner.reports.importance import importance
from runner.reports.scales import log_ticks, tick_labels, ticks
from runner.reports.series import points_of, smooth
from runner.reports.sweep_report import write_sweep_report

SAMPLE = {
    "index": 0,
    "prompt": "Two lattes",
    "expected": "{}",
    "before": "Sure!",
    "after": "{}",
    "before_match": False,
    "after_match": True,
}


def page_of(folder: Path) -> str:
    """Write the report and return its text."""
    return write_sweep_report(folder).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What a reader sees, which the script is not."""
    return all_words_of(re.sub(r"<script>.*?</script>", "", page, flags=re.S))


def sections(page: str) -> set[str]:
    """The sections that a page has."""
    return set(re.findall(r'<section id="([^"]+)"', page))


def grid(folder: Path, count: int = 2, **changes: Any) -> Path:
    """A sweep of 3 x 4 with repeats, a failure, a diverged and a dropped cell, and samples of the best."""
    draw = random.Random(5)
    cells = []
    for rank in (8, 16, 32):
        for step, rate in enumerate(("1e-4", "3e-4", "1e-3", "3e-3")):
            group = f"lora.r={rank},trainer.learning_rate={rate}"
            losses = [0.5 - 0.03 * step + abs(rank - 16) / 1000 + draw.gauss(0, 0.001) for _ in range(count)]
            facts = {
                "exact_match_before": 0.0,
                "exact_match_after": 0.9,
                "trainable_parameters": rank * 10**6,
            }
            cells += repeats(group, *losses, steps=60, metrics=facts, lora={"r": rank, "lora_alpha": 32})
    error = {"type": "OutOfMemoryError", "message": "no memory", "traceback": "Traceback: line 41"}
    dropped = {"step": 30, "fraction": 0.5, "eval_loss": 1.5, "rank": 2, "of": 2}
    cells += [
        cell("lora.r=64,trainer.learning_rate=1e-4", status="failed", error=error, steps=9),
        cell("lora.r=64,trainer.learning_rate=3e-4", status="failed", error=error, steps=9),
        cell(
            "lora.r=64,trainer.learning_rate=3e-3",
            status="diverged",
            error=error | {"type": "Diverged"},
            steps=5,
        ),
        cell("lora.r=64,trainer.learning_rate=1e-3", status="dropped", dropped=dropped, steps=30),
    ]
    facts = {
        "device": {"name": "test machine"},
        "packages": {"torch": "2.13.0"},
        "model": {"path": "org/tiny"},
    }
    for item in cells:
        item["run"] |= facts
    make_sweep(folder, cells, **changes)
    best = "lora.r=16,trainer.learning_rate=3e-3"
    for path in folder.glob(f"{best}*"):
        write_lines(path / "samples.jsonl", [SAMPLE | {"index": n} for n in range(3)])
        (path / "report.html").write_text("<p>cell</p>")
    return folder


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


def many(folder: Path) -> Path:
    """64 cells of four axes."""
    draw = random.Random(1)
    cells = [
        cell(f"lora.r={r},x.lr={lr},b={b},c={c}", draw.random(), steps=200)
        for r in (4, 8, 16, 32)
        for lr in (1, 2, 3, 4)
        for b in ("true", "false")
        for c in ("u", "v")
    ]
    return make_sweep(folder, cells)


def scattered(folder: Path) -> Path:
    """Values that a search drew at random, each once."""
    draw = random.Random(1)
    return make_sweep(
        folder, [cell(f"lr={draw.random():.6f},wd={draw.random():.6f}", draw.random()) for _ in range(40)]
    )


def equal(folder: Path) -> Path:
    """Cells that all come out the same, and flat curves."""
    folder = make_sweep(folder, [cell(f"a={n},b={m}", 0.0, steps=2) for n in (1, 2) for m in (1, 2)])
    for file in folder.glob("*/metrics.jsonl"):
        file.write_text('{"step": 0, "loss": 0.0}\n')
    return folder


ALWAYS = {"settings"}


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


def with_adapter(folder: Path, name: str, rank: int) -> None:
    """Give a cell an adapter and a config."""
    (folder / name / "adapter").mkdir()
    shape = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "base_model_name_or_path": "org/tiny"}
    (folder / name / "adapter" / "adapter_config.json").write_text(json.dumps(shape))
    config = {"model": {"path": "org/tiny"}, "lora": {"r": rank}, "seed": 3, "data": {"path": "rows.jsonl"}}
    (folder / name / "config.yaml").write_text(json.dumps(config))


def test_a_sweep_folder_stands_for_its_best_cell(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", [cell("lora.r=8", 0.5), cell("lora.r=16", 0.4)], best="lora.r=16")
    with_adapter(folder, "lora.r=8", 8)
    with_adapter(folder, "lora.r=16", 16)
    found = find_adapter(str(folder))
    assert found.run == folder / "lora.r=16"
    assert found.config["r"] == 16
    groups, others, _ = inherited([f"adapter={folder}", "recipe=evaluate"], [], OBJECTIVES)
    assert groups["lora"]["r"] == 16
    assert groups["model"] == {"path": "org/tiny"}
    assert groups["data"] == {"path": "rows.jsonl"}
    assert "seed=3" in others


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the sweep has no best cell (1 completed, 1 waiting)"),
        ({"status": "running"}, "the sweep has no best cell yet (1 completed, 1 waiting)"),
        ({"cells": []}, "(it has no cells)"),
        ({"cells": 3}, "sweep.json cannot be read"),
        ({"best": "lora.r=99"}, "its best cell 'lora.r=99' is not in the folder"),
        ({"best": "../elsewhere"}, "its best cell '../elsewhere' is not in the folder"),
        ({"best": "lora.r=8"}, "holds no adapter_config.json"),
    ],
)
def test_a_sweep_without_a_best_cell_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    cells = [cell("lora.r=8", 0.5), cell("lora.r=16", status="waiting")]
    with pytest.raises(ConfigError) as error:
        find_adapter(str(make_sweep(tmp_path / "sweep", cells, **changes)))
    assert reason in str(error.value)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("make", [grid, many, scattered])
def test_the_page_fits_its_window_and_its_filters_work(
    tmp_path: Path, width: int, make: Callable[[Path], Path]
) -> None:
    page = page_of(make(tmp_path / "sweep")).replace("<details>", "<details open>")
    # the frame is of exactly the wanted width; its script may run there, and tells what it sees in the title
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    frame = tmp_path / "frame.html"
    script = """
    onload = () => {
      const page = frames[0].document, view = page.documentElement;
      const shown = () => page.querySelectorAll(".curves .line:not(.off)").length;
      const first = page.querySelector("td") && page.querySelector("tbody tr").textContent;
      const found = {inside: view.clientWidth, needed: view.scrollWidth, before: shown()};
      const box = page.querySelector(".filters fieldset input");
      const all = page.querySelector(".filters fieldset button");
      if (box) { box.click(); found.after = shown(); box.click(); found.again = shown();
        all.click(); found.none = shown(); all.click(); }
      const line = page.querySelector(".curves .line.best path, .parallel .line.best path");
      const svg = line.closest("svg"), at = line.getPointAtLength(5).matrixTransform(svg.getScreenCTM());
      const where = {clientX: at.x, clientY: at.y, bubbles: true};
      svg.dispatchEvent(new frames[0].PointerEvent("pointermove", where));
      found.readout = svg.closest(".traced").querySelector(".readout").textContent;
      found.hot = svg.querySelectorAll(".line.hot").length;
      const heads = page.querySelectorAll("table.board th button");
      heads[1].click(); heads[1].click();
      found.sorted = [...page.querySelectorAll(".board tbody tr")].map((row) => row.cells[1].textContent);
      found.controls = [...page.querySelectorAll("[data-script]")].every((part) => !part.hidden);
      const pairs = page.querySelector("select.pairs");
      if (pairs) { pairs.selectedIndex = 2; pairs.dispatchEvent(new frames[0].Event("change"));
        found.maps = [...page.querySelectorAll(".heatmap")].map((map) => !map.hidden); }
      document.title = JSON.stringify(found);
      document.body.replaceChildren();
    };"""
    frame.write_text(
        f'<!doctype html><iframe style="border:0;width:{width}px;height:900px"'
        f' srcdoc="{html.escape(policy.sub("", page))}"></iframe><script>{script}</script>',
        encoding="utf-8",
    )
    found = json.loads(
        html.unescape(re.findall(r"<title>(.*?)</title>", dom(frame, tmp_path / "profile", width))[0])
    )
    assert width - 20 <= found["inside"] <= width
    assert found["needed"] <= found["inside"]
    assert found["controls"]
    assert found["hot"] == 1
    assert re.search(r"\w=.*: (last )?[\d.]+$", found["readout"]), found["readout"]
    if make is scattered:
        return
    cells = {grid: (28, 8), many: (64, 16)}[make]
    assert found["before"] == found["again"] == 2 * cells[0]
    assert found["after"] == 2 * (cells[0] - cells[1])
    assert found["none"] == 0
    ranks = [int(text) for text in found["sorted"]]
    assert ranks == sorted(ranks, reverse=True)
    assert found.get("maps", [False, False, True])[:3] == [False, False, True]


@needs_chromium
@pytest.mark.slow
def test_the_policy_lets_the_script_of_the_page_run(tmp_path: Path) -> None:
    shown = dom(write_sweep_report(grid(tmp_path / "sweep")), tmp_path / "profile", 1280)
    assert "28 of 28 cells shown" in shown


def dom(page: Path, profile: Path, width: int) -> str:
    """The DOM of a page after headless Chromium has run it."""
    assert CHROMIUM
    size = f"--window-size={width},900"
    words = [CHROMIUM, *CHROMIUM_FLAGS, f"--user-data-dir={profile}", size, "--virtual-time-budget=4000"]
    command = [*words, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
