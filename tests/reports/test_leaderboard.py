"""Who is best in a sweep, by how much, and what is said of the cells that have no result."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from helpers.sweep_folder import cell, make_sweep, repeats, write_lines
from runner.core.metric_names import METRICS, RESULTS, find_metric
from runner.evaluation.metrics import METRICS as ANSWER_METRICS
from runner.reports.labels import short_names
from runner.reports.leaderboard import leaderboard
from runner.reports.results import read_sweep


def test_the_lowest_loss_is_first_and_the_highest_score(tmp_path: Path) -> None:
    cells = [
        cell("lora.r=8", 0.5, metrics={"exact_match_after": 0.9}),
        cell("lora.r=16", 0.4, metrics={"exact_match_after": 0.7}),
        cell("lora.r=32", 0.6, metrics={"exact_match_after": 0.8}),
    ]
    board = leaderboard(make_sweep(tmp_path / "loss", cells))
    assert [row.group for row in board.rows] == ["lora.r=16", "lora.r=8", "lora.r=32"]
    assert [row.rank for row in board.rows] == [1, 2, 3]
    assert board.best == "lora.r=16"
    settings = {"metric": "exact_match_after"}
    board = leaderboard(make_sweep(tmp_path / "match", cells, settings=settings))
    assert [row.group for row in board.rows] == ["lora.r=8", "lora.r=32", "lora.r=16"]
    assert board.scores == ["exact_match_after", "eval_loss"]
    assert (
        leaderboard(make_sweep(tmp_path / "short", cells, settings={"metric": "exact_match"})).best
        == "lora.r=8"
    )


@pytest.mark.parametrize(
    "metric", ["eval_loss", "train_loss", "perplexity", "merge_kl", "peak_memory_bytes", "step_ms"]
)
def test_less_is_better_of_losses(metric: str) -> None:
    assert not find_metric(metric).higher


@pytest.mark.parametrize(
    "metric",
    ["exact_match_after", "chrf_after", "eval_accuracy", "eval_f1", "rouge_l_after", "tokens_per_second"],
)
def test_more_is_better_of_scores(metric: str) -> None:
    assert find_metric(metric).higher


def test_every_metric_that_is_measured_or_shown_is_in_the_table() -> None:
    from recipes import OBJECTIVES
    from runner.reports.run_report import CARD_METRICS, CURVES

    kept = {name for objective in OBJECTIVES.values() for name in objective.scores}
    shown = {*RESULTS, *CARD_METRICS, *ANSWER_METRICS, *CURVES, *kept}
    assert {key.replace("/", "_") for key in shown} <= METRICS.keys()


@pytest.mark.parametrize(
    ("key", "label", "title", "share"),
    [
        ("exact_match_after", "exact match", "Exact match", True),
        ("eval_rewards/accuracies", "reward accuracy", "Reward accuracy", True),
        ("eval_loss", "held-out loss", "Held-out loss", False),
        ("eval_mean_token_accuracy", "token accuracy", "Token accuracy", True),
        ("chrf_before", "chrF", "chrF", False),
        ("merge_greedy_agreement", "top-1 agreement", "Top-1 agreement", True),
        ("my_own_match", "my own match", "My own match", True),
        ("eval_word_error", "word error", "Word error", False),
    ],
)
def test_a_metric_has_one_name_everywhere(key: str, label: str, title: str, share: bool) -> None:
    found = find_metric(key)
    assert (found.label, found.title, found.share) == (label, title, share)


def test_repeats_share_a_row_with_mean_and_spread(tmp_path: Path) -> None:
    cells = [*repeats("lora.r=8", 0.50, 0.54, 0.52), *repeats("lora.r=16", 0.41, 0.61)]
    board = leaderboard(make_sweep(tmp_path, cells))
    assert [row.group for row in board.rows] == ["lora.r=16", "lora.r=8"]
    score = board.rows[1].scores["eval_loss"]
    assert (score.mean, score.n) == (pytest.approx(0.52), 3)
    assert score.deviation == pytest.approx(0.02)
    assert board.best == "lora.r=16,seed=1", "of two repeats of the group with the best mean the worse one"


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("eval_loss", (0.5, 0.1, 0.3), 2), ("exact_match_after", (0.5, 0.9, 0.1, 0.7), 0)],
)
def test_the_best_cell_is_the_median_repeat(tmp_path: Path, metric: str, values: tuple, best: int) -> None:
    cells = [
        cell(f"a=1,seed={n}", 0.0, group="a=1", seed=n, metrics={metric: x}) for n, x in enumerate(values)
    ]
    board = leaderboard(make_sweep(tmp_path, cells, settings={"repeat": len(values), "metric": metric}))
    assert board.best == f"a=1,seed={best}"


def test_with_two_rows_noise_is_the_paired_t_test(tmp_path: Path) -> None:
    """Seeds that do the same to both cells are no noise; a seed that one of them lacks tells nothing."""
    from scipy.stats import ttest_rel

    draw = random.Random(3)
    verdicts = set()
    for n in range(12):
        seeds = [draw.gauss(0, 0.1) for _ in range(4)]
        first = [seed + draw.gauss(0.5, 0.01) for seed in seeds[:3]]
        second = [seed + draw.gauss(0.5 + 0.004 * n, 0.01) for seed in seeds]
        cells = [*repeats("lora.r=8", *first), *repeats("lora.r=16", *second)]
        noise = leaderboard(make_sweep(tmp_path / str(n), cells)).rows[1].noise
        assert noise
        assert noise.within == (ttest_rel(first, second[:3]).pvalue > 0.05)
        verdicts.add(noise.within)
    assert verdicts == {True, False}


def test_the_spread_is_pooled_and_serves_rows_without_repeats(tmp_path: Path) -> None:
    cells = [
        *repeats("lora.r=4", 0.500, 0.502),
        *repeats("lora.r=8", 0.503, 0.501),
        *repeats("lora.r=16", 0.560, 0.562),
        cell("lora.r=32", 0.5025, seed=1),
        cell("lora.r=64", 0.54, seed=0),
        cell("lora.r=128", 0.55, seed=7),
    ]
    board = leaderboard(make_sweep(tmp_path, cells))
    within = {row.group: row.noise.within for row in board.rows if row.noise}
    known = {"lora.r=8": True, "lora.r=32": True, "lora.r=64": False, "lora.r=16": False}
    assert within == known | {"lora.r=128": None}
    assert "at equal seeds, noise estimated from 9 cells of 6 rows" in board.method
    alone = next(row.noise for row in board.rows if row.group == "lora.r=128")
    assert alone
    assert alone.why == "has no seed in common with the best"


def test_equal_repeats_are_within_noise_of_each_other(tmp_path: Path) -> None:
    board = leaderboard(make_sweep(tmp_path, [*repeats("a=1", 0.1, 0.1, 0.1), *repeats("a=2", 0.1, 0.1)]))
    assert board.rows[1].noise
    assert board.rows[1].noise.within


def test_without_repeats_the_held_out_rows_are_compared_in_pairs(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = [draw.gauss(5, 2) for _ in range(60)]  # rows differ far more than cells do
    worse = [loss + 0.3 + draw.gauss(0, 0.2) for loss in rows]
    alike = [loss + 0.01 + 0.2 * (-1) ** n for n, loss in enumerate(rows)]
    cells = [
        cell("lora.r=8", 0.50, rows=rows),
        cell("lora.r=16", 0.51, rows=alike),
        cell("lora.r=32", 0.53, rows=worse),
    ]
    board = leaderboard(make_sweep(tmp_path, cells))
    assert [row.noise and row.noise.within for row in board.rows] == [None, True, False]
    assert "paired bootstrap" in board.method


@pytest.mark.parametrize("kind", ["missing", "fewer", "tokens", "few", "null", "twice", "cut", "metric"])
def test_noise_is_unknown_where_rows_cannot_be_compared(tmp_path: Path, kind: str) -> None:
    count = 4 if kind == "few" else 30
    settings = {"metric": "train_loss" if kind == "metric" else "eval_loss"}
    cells = [
        cell("a=1", 0.5, rows=[5.0] * count, metrics={"train_loss": 1.0}),
        cell("a=2", 0.6, rows=[6.0] * count, metrics={"train_loss": 2.0}),
    ]
    folder = make_sweep(tmp_path, cells, settings=settings)
    file = folder / "a=2" / "held_out.jsonl"
    lines = [{"index": n, "loss": 6.0, "tokens": 10} for n in range(count)]
    if kind == "missing":
        file.unlink()
    elif kind == "fewer":
        write_lines(file, lines[1:])
    elif kind == "tokens":
        write_lines(file, [*lines[1:], {"index": 0, "loss": 6.0, "tokens": 9}])
    elif kind == "null":
        write_lines(file, [*lines[1:], {"index": 0, "loss": None, "tokens": 10}])
    elif kind == "twice":
        write_lines(file, [*lines, lines[0]])
    elif kind == "cut":
        file.write_text(file.read_text()[:-20])
    board = leaderboard(folder)
    assert board.rows[1].noise
    assert board.rows[1].noise.within is None
    assert board.method.startswith("unknown: ")


def test_cells_without_a_result_come_last_with_when_and_why(tmp_path: Path) -> None:
    dropped = {"step": 20, "fraction": 0.25, "eval_loss": 1.5, "rank": 3, "of": 4}
    error = {"type": "OutOfMemoryError", "message": "no memory\nfor more", "traceback": "..."}
    cells = [
        cell("a=1", status="waiting"),
        cell("a=2", status="failed", error=error, steps=7),
        cell("a=3", status="diverged", error={"type": "Diverged", "message": "NaN"}),
        cell("a=4", status="dropped", dropped=dropped, steps=20),
        cell("a=5", status="running", steps=3),
        cell("a=6", 0.5),
        cell("a=7", status="running", ledger="failed", reason="killed by SIGKILL", steps=4),
        cell("a=8", record=False),
        cell("a=9", float("nan")),
        cell("a=10", None),
        cell("a=11", status="preempted", steps=2),
        cell("a=12", status="running", ledger="waiting", steps=2),  # killed, and to be started again
        cell("a=13", status="preempted", error={"type": "Preempted", "message": "by SIGTERM after step 9"}),
    ]
    board = leaderboard(make_sweep(tmp_path, cells, status="running"))
    assert [(row.group, row.status, row.reason) for row in board.rows] == [
        ("a=6", "completed", ""),
        ("a=9", "completed", "eval_loss is not finite"),
        ("a=10", "completed", "run.json has no eval_loss"),
        ("a=5", "running", ""),
        ("a=4", "dropped", "at step 20 (25% of the run): held-out loss 1.5, number 3 of 4"),
        ("a=3", "diverged", "before the first step: Diverged: NaN"),
        ("a=2", "failed", "after step 7: OutOfMemoryError: no memory"),
        ("a=7", "failed", "after step 4: killed by SIGKILL"),
        (
            "a=8",
            "failed",
            "before the first step: completed says sweep.json, but run.json is missing or cannot be read",
        ),
        ("a=11", "preempted", "after step 2: no reason is recorded"),
        ("a=13", "preempted", "by SIGTERM after step 9"),
        ("a=1", "waiting", ""),
        ("a=12", "waiting", ""),
    ]
    assert board.best == "a=6"
    assert [row.rank for row in board.rows] == [1] + [None] * 12


def test_a_group_with_a_failed_repeat_says_on_how_many_it_rests(tmp_path: Path) -> None:
    failed = cell("a=1,seed=2", status="failed", group="a=1", error={"message": "no"}, steps=5)
    board = leaderboard(make_sweep(tmp_path, [*repeats("a=1", 0.4, 0.5), failed]))
    assert board.rows[0].scores["eval_loss"].n == 2
    assert board.rows[0].reason == "2 of 3 repeats; failed after step 5: no"


def test_the_effective_scale_follows_the_config_of_the_cell(tmp_path: Path) -> None:
    cells = [
        cell("a=1", 0.1, lora={"r": 16, "lora_alpha": 32, "use_rslora": False}),
        cell("a=2", 0.2, lora={"r": 16, "lora_alpha": 32, "use_rslora": True}),
        cell("a=3", 0.3, lora={}),
        cell("a=4", 0.4),
    ]
    assert [row.scale for row in leaderboard(make_sweep(tmp_path, cells)).rows] == [2.0, 8.0, None, None]


def test_without_sweep_json_the_cells_are_the_run_folders(tmp_path: Path) -> None:
    cells = [
        cell("lora.r=8,trainer.lr=1", 0.4, overrides=["lora.r=8", "trainer.lr=1"]),
        cell("lora.r=16,trainer.lr=1", 0.5, overrides=["lora.r=16", "trainer.lr=1"]),
    ]
    folder = make_sweep(tmp_path, cells)
    (folder / "sweep.json").unlink()
    board = leaderboard(folder)
    assert board.best == "lora.r=8,trainer.lr=1"
    assert board.sweep.axes == {"lora.r": ["8", "16"]}


def test_values_are_in_order_of_size_and_names_are_short(tmp_path: Path) -> None:
    cells = [cell(f"lora.r={rank},quantization={kind}", 0.1) for rank in (16, 8) for kind in ("none", "nf4")]
    sweep = read_sweep(make_sweep(tmp_path, cells))
    assert sweep.axes == {"lora.r": ["8", "16"], "quantization": ["none", "nf4"]}
    assert short_names(["lora.r", "trainer.r", "seed.x"]) == {
        "lora.r": "lora.r",
        "trainer.r": "trainer.r",
        "seed.x": "x",
    }


def test_a_run_json_that_is_broken_becomes_a_note(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, [cell("a=1", 0.5), cell("a=2", 0.4)])
    (folder / "a=2" / "run.json").write_text('{"status": "comple')
    board = leaderboard(folder)
    assert board.best == "a=1"
    assert any("run.json could not be read" in note for note in board.sweep.notes)


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = make_sweep(tmp_path, [cell("a=1", 0.5), cell("a=2", 0.4)])
    code = (
        "import sys; from pathlib import Path; from runner.reports.sweep_report import write_sweep_report;"
        f"write_sweep_report(Path({json.dumps(str(folder))})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
