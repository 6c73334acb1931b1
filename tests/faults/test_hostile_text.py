"""Row 38: markup in rows, values, names and errors is text in the reports, in a real browser too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import TINY, Run
from helpers.pages import dump_dom, needs_chromium
from helpers.sweep_folder import cell, make_sweep
from runner.reports.sweep_report import write_sweep_report

pytestmark = [pytest.mark.report, pytest.mark.slow]

# Each would rename the page, which a browser that runs it shows in the DOM.
MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"></pre></td>"
CLOSING = "--></style></script></title>" + MARKUP


def check_page(page: Path, profile: Path, scripts: int) -> None:
    """What the browser made of the page: our own elements, and nothing of a text."""
    dom = dump_dom(page, profile)
    assert "owned" in dom  # it is on the page, as text
    assert dom.count("<script") == scripts
    assert "<img" not in dom
    assert "<title>owned" not in dom
    assert "&lt;img src=x" in dom


@needs_chromium
def test_report_of_a_real_run_is_text(cli: Callable[..., Run], tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=owned>"
    rows = [{"prompt": f"{CLOSING} {n}", "completion": MARKUP} for n in range(6)]
    folder.mkdir()
    file = folder / "rows<script>.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("data=file", f"data.path='{file}'", "data.eval_path=null", "data.eval_split=0.5")
    system = f"template.system={json.dumps(MARKUP)}"
    run = cli(*TINY, "trainer.max_steps=1", "data.metric=exact_match", *words, system, folder="run")
    assert run.code == 0
    check_page(run.folder / "report.html", tmp_path / "profile", scripts=0)


@needs_chromium
def test_report_of_a_failed_run_is_text(cli: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"def f(answer, expected):\n    raise RuntimeError({MARKUP!r})\n")
    run = cli(
        "recipe=evaluate", "model=tiny", "data=orders", "data.eval_max_rows=2", "evaluate.function=own.py:f"
    )
    assert run.code == 1
    assert MARKUP in run.record["error"]["message"]
    check_page(run.folder / "report.html", tmp_path / "profile", scripts=0)


@needs_chromium
def test_report_of_a_sweep_is_text(tmp_path: Path) -> None:
    error = dict.fromkeys(("type", "message", "traceback"), CLOSING)
    cells = [
        cell(f"data.x={CLOSING.replace('/', '_').replace('=', '.')},b={n}", 0.5 + n, steps=5, notes=[CLOSING])
        for n in range(2)
    ]
    cells += [cell("b=3", status="failed", error=error, reason=CLOSING)]
    folder = make_sweep(tmp_path / "sweep", cells, command=CLOSING, settings={"metric": CLOSING})
    row = json.dumps({"index": 0, "prompt": CLOSING, "before": MARKUP, "after": MARKUP, "expected": MARKUP})
    for entry in cells[:2]:
        (folder / entry["entry"]["name"] / "samples.jsonl").write_text(row + "\n", encoding="utf-8")
    check_page(write_sweep_report(folder), tmp_path / "profile", scripts=1)


@needs_chromium
def test_the_browser_would_show_it(tmp_path: Path) -> None:
    """The check above fails on a page that lets the markup through."""
    (tmp_path / "page.html").write_text(f"<title>mine</title>{MARKUP}&lt;img src=x", encoding="utf-8")
    with pytest.raises(AssertionError):
        check_page(tmp_path / "page.html", tmp_path / "profile", scripts=0)
