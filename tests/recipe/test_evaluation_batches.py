"""Held-out scores do not depend on how many rows share a batch of the evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY
from helpers.packs import run_pack
from runner.training.evaluating import EvaluatingTrainer
from runner.training.means import WeightedMeans

pytestmark = pytest.mark.slow

LENGTHS = (2, 60, 4, 3, 44, 1, 90)  # letters of the held-out answers: short ones and long ones side by side
WORDS = (
    *TINY[:2],
    "trainer.max_steps=2",
    "trainer.learning_rate=0.05",
    "trainer.warmup_steps=0",
    "trainer.max_length=512",
    "trainer.save_strategy=no",
    "generation.samples=0",
    "data.metric=null",
    "data=file",
)
TIMES = ("runtime", "per_second", "seconds", "epoch", "step", "preparation_time")


def rows(kind: str, count: int) -> list[dict[str, Any]]:
    """Rows of a recipe's kind, uneven in length and in how many are liked."""
    found = []
    for number in range(count):
        text = "abcdefgh"[number % 8] * LENGTHS[number % len(LENGTHS)] + "."
        if kind == "classify":
            found.append({"text": f"{number} {text}", "label": "long" if len(text) > 10 else "short"})
        elif kind == "kto":
            found.append({"prompt": f"{number}?", "completion": text, "label": number % 3 != 1})
        elif kind == "sft":
            found.append({"prompt": f"{number}?", "completion": text})
        else:
            other = "z" * LENGTHS[(number + 2) % len(LENGTHS)]
            found.append({"prompt": f"{number}?", "chosen": text, "rejected": other})
    return found


def files(folder: Path, kind: str) -> tuple[str, ...]:
    for name, count in (("train", 8), ("held_out", 7)):
        found = rows(kind, count + 20)[-count:] if name == "train" else rows(kind, count)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return (f"data.path={folder / 'train.jsonl'}", f"data.eval_path={folder / 'held_out.jsonl'}")


def same(scores: list[dict[str, float]]) -> None:
    """Assert that evaluations differ by rounding only."""
    first, *others = ({key: s[key] for key in s if not key.endswith(TIMES)} for s in scores)
    assert "eval_loss" in first
    for other in others:
        assert other == pytest.approx(first, rel=2e-5, abs=2e-6)


RECIPES = {
    "sft": ("sft",),
    "dft": ("sft", "trainer.loss_type=dft"),
    "dpo": ("dpo",),
    "dpo with a likelihood term": ("dpo", "trainer.loss_type=[sigmoid,sft]"),
    "dpo that sorts": ("dpo", "trainer.loss_type=aot"),
    "kto": ("kto",),
    "kto with stored references": ("kto", "trainer.precompute_ref_log_probs=true"),
    "orpo": ("orpo",),
    "reward": ("reward",),
    "classify": ("classify",),
}


OFTEN = ("sft", "dpo with a likelihood term", "kto with stored references", "classify")


@pytest.mark.parametrize(
    "name", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in OFTEN)]
)
def test_scores_are_those_of_any_batch_size(cli, tmp_path, monkeypatch, name):
    recipe, *more = RECIPES[name]
    evaluate, found = EvaluatingTrainer.evaluate, []

    def measured(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        for size in (1, 2, 5, 7):
            self.args.per_device_eval_batch_size = 1 if name.startswith("dpo ") else size
            found.append(evaluate(self, *args, **kwargs))
        return found[-1]

    monkeypatch.setattr(EvaluatingTrainer, "evaluate", measured)
    kind = recipe if recipe in ("sft", "kto", "classify") else "pairs"
    run = cli(f"recipe={recipe}", *WORDS, *files(tmp_path, kind), *more)
    assert run.code == 0
    same(found)
    same([line for line in run.lines("metrics.jsonl") if "eval_loss" in line])


@pytest.mark.parametrize("loss", ["[sigmoid,sft]", "aot"])
def test_a_loss_that_belongs_to_a_batch_is_measured_pair_by_pair(cli, tmp_path, loss):
    words = ("recipe=dpo", *WORDS, *files(tmp_path, "pairs"), f"trainer.loss_type={loss}")
    runs = [cli(*words, f"trainer.per_device_eval_batch_size={n}", folder=f"by{n}") for n in (1, 4)]
    same([run.lines("metrics.jsonl")[-1] for run in runs])


@pytest.mark.parametrize("recipe", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_cells_of_a_pack_have_the_scores_of_their_solo_runs_whatever_the_batch(cli, tmp_path, recipe):
    data = files(tmp_path, "sft" if recipe == "sft" else "pairs")
    words = (f"recipe={recipe}", *WORDS, *data, "model.dtype=float64")
    grid = [("lora.r=4",), ("lora.r=2", *(("trainer.loss_type=[sigmoid,sft]",) if recipe == "dpo" else ()))]
    solo = [cli(*words, *own, folder=f"solo{n}") for n, own in enumerate(grid)]
    packs = [
        run_pack(tmp_path / f"pack{size}", (*words, f"trainer.per_device_eval_batch_size={size}"), grid)
        for size in (2, 7)
    ]
    for runs in zip(solo, *packs, strict=True):
        lines = [[line for line in run.lines("metrics.jsonl") if "eval_loss" in line][-1] for run in runs]
        names = set.intersection(*(set(line) for line in lines))
        same([{name: line[name] for name in names} for line in lines])
        assert runs[0].record["metrics"]["eval_loss"] == lines[0]["eval_loss"]


def test_the_loss_is_the_mean_over_loss_tokens_and_decides_which_checkpoint_is_best(cli, tmp_path):
    words = (*WORDS, *files(tmp_path, "sft"), "trainer.per_device_eval_batch_size=3")
    best = ("trainer.eval_strategy=steps", "trainer.eval_steps=1", "trainer.metric_for_best_model=eval_loss")
    saved = ("trainer.save_strategy=steps", "trainer.save_steps=1", "trainer.load_best_model_at_end=true")
    run = cli(*words, *best, *saved)
    measured = [line["eval_loss"] for line in run.lines("metrics.jsonl") if "eval_loss" in line]
    state = json.loads((run.folder / "checkpoints/checkpoint-2/trainer_state.json").read_text())
    assert state["best_metric"] == min(measured)
    scored = cli("recipe=evaluate", "adapter=run", "generation.rows=0", folder="scored")
    loss = json.loads((scored.folder / "evaluation.json").read_text())["models"]["run"]["loss"]["value"]
    assert loss == pytest.approx(min(measured), rel=1e-5)


def test_means_weigh_what_each_was_taken_over() -> None:
    means = WeightedMeans()
    means.add({"loss": 2.0, "eval_rewards": 1.0, "max_reward": 1.0}, {"": 1, "loss": 10})
    means.add({"loss": 5.0, "eval_rewards": 4.0, "max_reward": -1.0}, {"": 3, "loss": 20})
    means.add({"eval_rewards": math.nan}, {"": 0})
    assert means.means() == {"loss": 4.0, "eval_rewards": 3.25, "max_reward": 1.0}


def test_a_run_keeps_no_bare_nan(cli, tmp_path, monkeypatch):
    """JSON has none, and other readers than Python's stop there."""
    monkeypatch.setattr(WeightedMeans, "means", lambda self: {"loss": 1.0, "entropy": math.nan})
    run = cli(*WORDS, *files(tmp_path, "sft"))
    assert run.code == 0
    assert [line["eval_entropy"] for line in run.lines("metrics.jsonl") if "eval_loss" in line] == [None]
    assert "NaN" not in (run.folder / "run.json").read_text() + (run.folder / "metrics.jsonl").read_text()
