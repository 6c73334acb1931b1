"""The run report: what a reader finds on the page, and that the page stands on its own."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.made_run import evaluation, full_run, make_run, metric_lines, run_record, sample_lines
from helpers.pages import HOSTILE, dump_dom, needs_chromium, words_of
from runner.reports import terminal
from runner.reports.run_report import page_environment, write_report

pytestmark = pytest.mark.report


def page_of(folder: Path) -> str:
    """Write the report and return its text."""
    return write_report(folder).read_text(encoding="utf-8")


def test_report_tells_the_run(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path))
    words = words_of(page)
    for expected in (
        "tiny-chat",
        "completed",
        "LoRA r=8",
        "0 % → 93.3 %",
        "+93.3 points",
        "3 min 32 s",
        "3 GiB",
        "3.5 % of 139 million",
        "Perplexity 1.107",
        "440 examples, 50,000 tokens",
        "32.0 %",
        "Duplicate 3",
        "2 min 10 s, 61 %",
        "adamw_torch used",
        "torch 2.13.0",
        "Hostname bench-2",
        "Started 2026-11-21 03:20:00 UTC",
        "now matches",
        "✓ match",
        "✕ no match",
    ):
        assert expected in words, expected
    assert re.findall(r'<svg class="plot"[^>]*aria-label="([^"]+)"', page) == [
        "Loss by step",
        "Learning rate by step",
        "Gradient norm by step",
        "Token accuracy by step",
    ]
    assert "Traceback" not in words


def test_report_is_self_contained(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path, error={"type": "Late", "message": "m", "traceback": "t"}))
    assert not re.search(
        r"https?:|<script|<link|<iframe|@import|xmlns|url\((?!#)", page.replace(html.escape(HOSTILE), "")
    )
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith("#") for link in links)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)


def test_markup_is_shown_as_text(tmp_path: Path) -> None:
    error = {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}
    folder = full_run(
        tmp_path,
        error=error,
        status="failed",
        recipe=HOSTILE,
        command=HOSTILE,
        notes=[HOSTILE],
        model={"path": HOSTILE},
        data={HOSTILE: {HOSTILE: HOSTILE}},
        times={HOSTILE: 1.0},
        **{HOSTILE: HOSTILE},
    )
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, f"{HOSTILE}{{$": step}) + "\n" for step in (1, 2, 3))
    page = page_of(folder)
    assert "<script" not in page
    assert "<img" not in page
    assert words_of(page).count(HOSTILE) > 12


def test_an_evaluation_says_which_differences_are_more_than_noise(tmp_path: Path) -> None:
    metrics = {"loss": 0.5, "exact_match": 0.2, "chrf": 11.5}
    folder = make_run(tmp_path, evaluation=evaluation("tuned"), samples=sample_lines())
    (folder / "run.json").write_text(json.dumps(run_record(recipe="evaluate", metrics=metrics)))
    words = words_of(page_of(folder))
    for expected in (
        "60, 20 held-out rows. Below each value, its 95 % interval from 1,000 bootstrap resamples",
        "Score base tuned Difference",
        "Loss lower is better 1.205 1.127 to 1.29 0.5 0.4 to 0.625 −0.705 better −0.9 to −0.6",
        "Exact match 25 % 10 % to 40 % 20 % 10 % to 35 % −5 points within noise −15 to +2.5",
        "chrF 21.48 17.49 to 26.64 11.5 10.25 to 12.75 −9.983 worse −11 to −8",
        "arc/acc lm-eval 0.5 0.75 +0.25",
        "base ✕ no match Sure! tuned ✓ match",
    ):
        assert expected in words, expected
    assert "more measurement" not in words
    assert "training" not in words.partition("Samples")[2].partition("Data")[0]


def test_a_difference_of_too_few_rows_is_not_called_noise(tmp_path: Path, capsys) -> None:
    found = json.loads(evaluation("tuned"))
    found["differences"]["tuned"]["loss"]["significant"] = False  # as recorded of five rows
    folder = make_run(tmp_path, evaluation=json.dumps(found), samples=sample_lines())
    assert "−0.705 too few rows −0.9 to −0.6" in words_of(page_of(folder))
    terminal.evaluation(found)
    said = capsys.readouterr().out
    assert (said.count("too few rows"), said.count("within noise")) == (1, 1)


def test_an_evaluation_of_several_adapters_compares_each_with_the_base(tmp_path: Path) -> None:
    words = words_of(page_of(make_run(tmp_path, evaluation=evaluation("one", HOSTILE))))
    assert f"Score base one Difference {HOSTILE} Difference" in words
    assert words.count("−9.983 worse") == 2


def test_an_evaluation_of_one_model_has_no_differences(tmp_path: Path) -> None:
    config = "recipe: evaluate\nlora: {r: 16}\n"
    page = page_of(make_run(tmp_path, evaluation=evaluation(), samples=sample_lines(), config=config))
    words = words_of(page)
    assert "Score base Loss" in words
    assert "Difference" not in words
    assert "within noise" not in words
    assert "Before" not in words
    assert "Answer ✓ match" in words
    assert "LoRA r=16" not in words


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"models": {}, "differences": {}}', '{"models": 3}'])
def test_an_evaluation_that_cannot_be_read_is_a_note(tmp_path: Path, text: str) -> None:
    words = words_of(page_of(make_run(tmp_path, evaluation=text)))
    assert "evaluation.json could not be read and is left out of this report" in words
    assert "Evaluation" not in words


@needs_chromium
def test_browser_makes_no_element_of_sample_markup(tmp_path: Path) -> None:
    dom = dump_dom(write_report(full_run(tmp_path)), tmp_path / "profile")
    assert "&lt;script&gt;alert(1)" in dom
    assert "<script" not in dom
    assert "<img" not in dom


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_failed_run_shows_its_error(tmp_path: Path, status: str) -> None:
    error = {"type": "DivergedError", "message": "loss is NaN at step 37", "traceback": "Traceback: line 141"}
    folder = make_run(
        tmp_path, status=status, error=error, metrics=metric_lines(37, nan_at=37) + '{"step": 38, "lo'
    )
    page = page_of(folder)
    words = words_of(page)
    assert words.index("DivergedError") < words.index("Key metrics")
    assert "Traceback: line 141" in words
    assert f'class="badge bad">{status}' in page
    assert words.count("not finite at step 37") == 1
    assert "metrics.jsonl: line 38 could not be read" not in words  # an eval line comes before it
    assert "metrics.jsonl: line 39 could not be read" in words


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"status": "failed", "error": "out of memory"},
        {"metrics": None, "data": [], "model": "org/tiny", "times": 3},
        {"status": "preempted", "metrics": {"train_loss": "NaN", "score_before": None}, "notes": "one note"},
        {
            "data": {"train": {"rows": None, "tokens": 0}, "removed": {}},
            "seconds": 0,
            "times": {"load": 0, "odd": {}},
        },
    ],
)
def test_sparse_run_does_not_crash(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    page = page_of(tmp_path)
    assert page.rstrip().endswith("</html>")
    assert "<svg" not in page
    assert "Samples" not in page


@pytest.mark.parametrize(
    "metrics",
    [
        "",
        "\n\n",
        '{"step": 1, "loss": NaN}\n',
        '{"step": 1, "loss": null}\n{"step": 2, "loss": Infinity}\n',
        '{"step": 1, "loss": 1e300}\n{"step": 2, "loss": 1e-300}\n',
        '{"loss": "x"}\n[1]\nnull\n"text"\n',
        '{"step": null, "loss": 2}\n{"step": 1, "loss": -1}\n',
    ],
)
def test_odd_metrics_do_not_crash(tmp_path: Path, metrics: str) -> None:
    assert page_of(make_run(tmp_path, metrics=metrics)).rstrip().endswith("</html>")


def test_null_loss_is_marked_and_null_elsewhere_is_not(tmp_path: Path) -> None:
    lines = [
        {"step": n, "loss": None if n == 3 else 1 / n, "grad_norm": None, "eval_loss": None}
        for n in (1, 2, 3, 4)
    ]
    lines.append({"step": 4, "loss": None, "eval_loss": 0.2, "entropy": None})
    page = page_of(make_run(tmp_path, metrics="".join(json.dumps(line) + "\n" for line in lines)))
    assert re.findall(r"not finite at step ([^<]+)<", page) == ["3"]
    assert "Gradient norm" not in page


def test_same_folder_gives_same_bytes(tmp_path: Path) -> None:
    first = write_report(full_run(tmp_path / "a")).read_bytes()
    assert first == write_report(full_run(tmp_path / "b")).read_bytes()
    assert first == write_report(tmp_path / "a").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "run.json",
        "samples.jsonl",
    ]


def test_lone_surrogates_are_written(tmp_path: Path) -> None:
    assert "\\ud800" in page_of(make_run(tmp_path, samples='{"prompt": "\\ud800", "after": "x"}\n'))


def test_resumed_run_keeps_the_last_value_of_a_step(tmp_path: Path) -> None:
    lines = [(1, 3.0), (2, 2.0), (3, 9.0), (2, 1.5), (3, 1.25)]
    page = page_of(make_run(tmp_path, metrics="".join(f'{{"step": {s}, "loss": {v}}}\n' for s, v in lines)))
    assert "<small>last</small> 1.25" in page


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window(tmp_path: Path, width: int) -> None:
    error = {"type": "ValueError", "message": "m" * 300, "traceback": "  File " + "x" * 400}
    command = "python -m runner " + "a" * 300
    folder = full_run(tmp_path, error=error, status="failed", command=command)
    (folder / "evaluation.json").write_text(evaluation("one", "two-" * 9, "three"), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8").replace("<details>", "<details open>")
    # A headless window has a least width, so the page is measured in a frame of exactly the wanted width.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe style="border:0;width:{width}px;height:900px"'
        f' srcdoc="{html.escape(page)}"></iframe>'
        "<script>onload = () => { const view = frames[0].document.documentElement;"
        "document.title = `${view.clientWidth} ${view.scrollWidth}`;"
        "document.body.replaceChildren(); };</script>",
        encoding="utf-8",
    )
    found = re.search(r"<title>(\d+) (\d+)</title>", dump_dom(frame, tmp_path / "profile", width))
    assert found, "the page was not measured"
    inside, needed = map(int, found.groups())
    assert width - 20 <= inside <= width
    assert needed <= inside


def test_many_samples_are_folded_and_cut(tmp_path: Path) -> None:
    samples = "".join(f'{{"index": {n}, "prompt": "p", "after": "a"}}\n' for n in range(230))
    words = words_of(page_of(make_run(tmp_path, samples=samples)))
    assert "194 more samples" in words
    assert "30 further samples are in samples.jsonl" in words
    assert "Sample 199" in words
    assert "Sample 200" not in words


def test_another_page_can_build_on_the_template() -> None:
    page = page_environment().from_string(
        '{% extends "report.html.j2" %}{% from "report.html.j2" import kv %}'
        "{% block header %}<h1>Sweep</h1>{% endblock %}"
        "{% block main %}{{ kv([('best_run', '3')]) }}{% endblock %}"
    )
    assert words_of(page.render()).endswith("Sweep Best run 3")
