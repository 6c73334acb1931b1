"""The report of a sweep in a browser: it fits its window, and its filters work."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.pages import CHROMIUM, CHROMIUM_FLAGS, needs_chromium
from helpers.sweep_folder import grid, many, scattered
from runner.reports.sweep_report import write_sweep_report


def page_of(folder: Path) -> str:
    """Write the report and return its text."""
    return write_sweep_report(folder).read_text(encoding="utf-8")


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
