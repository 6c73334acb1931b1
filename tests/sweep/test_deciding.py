"""Which metric ranks the cells of a sweep: one that all will have, computed alike in each."""

import json

import pytest

from helpers.command import issues
from helpers.sweep_folder import cell, make_sweep
from helpers.sweeps import one
from runner.config.settings import SweepSettings
from runner.core.errors import ConfigError
from runner.reports.leaderboard import leaderboard
from runner.reports.sweep_report import sweep_context
from runner.sweep.cells import expand
from runner.sweep.deciding import Deciding, deciding

DPO = ("model=tiny", "recipe=dpo")
KTO = ("recipe=kto", "data=orders-pairs")
ROWS = ("model=tiny", "data=file", "data.path=rows.jsonl")
BY_ACCURACY = "ranked by reward accuracy (eval_rewards_accuracies)"


def decided(tmp_path, *commands, sought=None, **settings) -> Deciding:
    """What decides a sweep whose cells have these commands."""
    runs = [one(*words) for words in commands]
    cells = [
        found
        for number, run in enumerate(runs)
        for found in expand([f"x={number}"], run, SweepSettings(), tmp_path)
    ]
    return deciding(cells, SweepSettings(**settings), sought)


@pytest.mark.parametrize(
    ("first", "second", "metric", "named"),
    [
        (["lora.r=4"], ["lora.r=8", "trainer.learning_rate=1e-3", "seed=3"], "eval_loss", ""),
        (["data.max_rows=8"], ["data.max_rows=16"], "eval_loss", ""),
        (["template.system=a"], ["template.system=b"], "eval_loss", ""),
        (["trainer.max_length=64"], ["trainer.max_length=128"], "exact_match_after", "trainer.max_length"),
        (["data.eval_max_rows=4"], ["data.eval_max_rows=8"], None, "data.eval_max_rows"),
        (
            [*DPO, "trainer.beta=0.1"],
            [*DPO, "trainer.beta=1"],
            "eval_rewards_accuracies",
            "trainer.beta",
        ),
        (
            [*DPO, "trainer.loss_type=ipo"],
            [*DPO, "trainer.loss_type=hinge"],
            "eval_rewards_accuracies",
            "trainer.loss_type",
        ),
        (
            [*DPO, "generation.rows=0"],
            ["recipe=kto", "data=orders-pairs", "generation.rows=0"],
            None,
            "recipe",
        ),
        ([*DPO], ["recipe=kto", "data=orders-pairs"], "exact_match_after", "recipe"),
        (
            ["recipe=evaluate", "model=tiny", "seed=1"],
            ["recipe=evaluate", "model=tiny", "seed=2"],
            "exact_match",
            "",
        ),
        (
            ["recipe=benchmark", "model=tiny", "benchmark.length=64"],
            ["recipe=benchmark", "model=tiny", "benchmark.length=128"],
            "tokens_per_second",
            "",
        ),
    ],
    ids=str,
)
def test_cells_are_ranked_by_what_can_be_compared(tmp_path, first, second, metric, named):
    found = decided(tmp_path, ["model=tiny", *first], ["model=tiny", *second])
    assert found.metric == metric
    assert bool(found.note) == bool(named)
    assert f"differ in {named}" in found.note or not named


def test_cells_that_tie_are_ranked_by_what_else_can_be_compared(tmp_path):
    classes = ("model=tiny", "recipe=classify")
    rates = [[*classes, f"trainer.learning_rate={rate}"] for rate in (1e-3, 1e-2)]
    assert decided(tmp_path, *rates).ties == ("eval_accuracy", "eval_f1")
    assert decided(tmp_path, *rates, metric="eval_accuracy").ties == ("eval_loss", "eval_f1")
    lengths = [[*classes, f"trainer.max_length={length}"] for length in (64, 128)]
    assert decided(tmp_path, *lengths).ties == ("eval_f1",)


def test_losses_over_other_vocabularies_are_not_compared(tmp_path):
    rows = ("generation.rows=0",)
    found = decided(tmp_path, ["model=qwen3-0.6b", *rows], ["model=llama3.2-1b-instruct", *rows])
    assert found.metric is None
    assert "differ in the vocabulary of the model" in found.note
    assert decided(tmp_path, ["model=qwen3-0.6b", *rows], ["model=qwen3-1.7b", *rows]).metric == "eval_loss"


def test_losses_of_other_kinds_are_refused_where_they_decide(tmp_path):
    betas = [[*DPO, f"trainer.beta={beta}"] for beta in (0.1, 1)]
    with pytest.raises(ConfigError) as error:
        decided(tmp_path, *betas, metric="eval_loss")
    (found,) = error.value.issues
    assert found.hint.startswith("sweep.metric=eval_rewards_accuracies")
    with pytest.raises(ConfigError, match="beta"):
        decided(tmp_path, *betas, halving=[0.5], metric="eval_rewards_accuracies")
    with pytest.raises(ConfigError, match="beta"):  # one cell, of a sweeper that will ask for others
        decided(tmp_path, betas[0], sought=["trainer.beta"])
    models = [["model=qwen3-0.6b"], ["model=llama3.2-1b-instruct"]]  # which share no pack
    assert decided(tmp_path, *models, halving=[0.5]).metric == "exact_match_after"


def test_what_is_unusual_of_the_ranking_is_said_first_and_kept(sweep):
    ran = sweep(*DPO, "trainer.beta=0.1,1")
    assert ran.said.index(BY_ACCURACY) < ran.said.index("cells over trainer.beta")
    assert BY_ACCURACY in ran.record["notes"][0]
    assert ran.record["deciding"]["metric"] == "eval_rewards_accuracies"


def test_a_sweep_that_will_rank_nothing_says_so_first(sweep, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x", "completion": "y"}) + "\n")
    ran = sweep(*ROWS, "trainer.learning_rate=1e-3,1e-2")
    assert ran.said.index("data.eval_split=0.1 holds some out") < ran.said.index("cells over")
    assert ran.record["best"] is None
    answer = sweep_context(leaderboard(ran.folder))["answer"]
    assert answer["nothing"].startswith("No cell is ranked: without held-out rows there is no held-out loss")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["sweep.metric=accuracy"], "eval_loss"),
        (["sweep.metric=eval_mean_token_accuracy"], "none of the metrics that run.json will have"),
        (["sweep.metric=exact_match", "generation.rows=0"], "generation.rows=null"),
        (["sweep.metric=rouge_l"], "data.metric=rouge_l"),
        ([*ROWS[1:], "data.path=embedded:orders_train", "sweep.metric=eval_loss"], "data.eval_split=0.1"),
        (["recipe=benchmark", "sweep.metric=eval_loss"], "tokens_per_second"),
    ],
    ids=str,
)
def test_a_metric_that_runs_will_not_have_is_refused(words, hint):
    (found,) = issues("-m", "model=tiny", "lora.r=4,8", *words)
    assert "sweep.metric" in found
    assert hint in found
    assert "eval_accuracy" not in found


def test_rows_without_a_ranking_say_why(tmp_path):
    why = "no cell is ranked: the cells differ in recipe"
    cells = [cell("a=1", 0.5), cell("a=2")]
    board = leaderboard(make_sweep(tmp_path / "s", cells, deciding={"metric": None, "note": why}))
    assert board.best is None
    assert [(row.rank, row.reason) for row in board.rows] == [(None, why)] * 2
    assert why in board.write(tmp_path).read_text()
    assert board.sweep.notes == [why]


def test_no_chat_is_offered_with_what_was_only_measured(sweep):
    assert "use it" in sweep("model=tiny", "lora.r=4,8").said
    assert "use it" not in sweep("model=tiny", "recipe=benchmark", "benchmark.length=64,128", folder="b").said
