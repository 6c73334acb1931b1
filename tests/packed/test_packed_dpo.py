"""Every cell of a pack of preference tuning is its solo run; the reference is computed once for them all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import TINY, Run
from helpers.packs import assert_equal as assert_equal_answers
from helpers.packs import run_pack
from helpers.rows import PAIRS
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.packed.layers import PackedLinear
from runner.packed.trainer import PackedTrainer
from runner.runs.parents import adapter_digest
from runner.speed.token_loss import token_logprobs
from runner.sweep.cells import Cell
from runner.sweep.packable import group
from runner.training.dpo_loss import METRICS

# Uneven in every way: 11 pairs in batches of 2 and windows of 2 batches, two epochs, 3 held out.
BASE = (
    "recipe=dpo",
    *TINY[:-3],
    "trainer.max_steps=-1",
    "trainer.num_train_epochs=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.per_device_eval_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.learning_rate=3e-3",
    *PAIRS,
    "generation.samples=0",
)
DOUBLE = (*BASE, "model.dtype=float64")
PADDING = 258  # of byte_tokenizer
SMOOTHED = ("exo_pair", "robust", "aot")
GRID = [
    ("lora.r=4", "lora.lora_alpha=8"),
    ("lora.r=8", "trainer.beta=0.5", "trainer.learning_rate=1e-3", "trainer.max_grad_norm=0"),
    ("lora.r=3", "lora.use_rslora=true", "trainer.beta=0.02", "trainer.max_grad_norm=0.01"),
    ("lora.r=4", "trainer.weight_decay=0.1", "trainer.warmup_steps=2", "trainer.lr_scheduler_type=linear"),
]
EACH_LOSS = [  # in one pack: every cell has its own
    *(
        (f"trainer.loss_type={loss}", *(("trainer.label_smoothing=0.1",) if loss in SMOOTHED else ()))
        for loss in OBJECTIVES["dpo"].losses
    ),
    ("trainer.loss_type=[sigmoid,sft]", "trainer.loss_weights=[1.0,0.3]"),
    ("trainer.f_divergence_type=forward_kl",),
    ("trainer.f_divergence_type=js_divergence", "trainer.loss_type=hinge"),
]


def assert_equal(solo: Run, packed: Run, figures: float, worst: float, median: float) -> None:
    """What is logged and measured to ``figures``; of the weights (relative) the worst tensor, the median."""
    ours, theirs = ([line for line in run.lines("metrics.jsonl") if "loss" in line] for run in (packed, solo))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-12)
        for name in ("loss", "grad_norm", *METRICS):
            assert one[name] == pytest.approx(other[name], rel=figures, abs=figures), (name, one["step"])
        assert one["num_tokens"] == other["num_tokens"]
    ours, theirs = (
        [line for line in run.lines("metrics.jsonl") if "eval_loss" in line][-1] for run in (packed, solo)
    )
    for name in ("loss", *METRICS):
        assert ours[f"eval_{name}"] == pytest.approx(theirs[f"eval_{name}"], rel=figures, abs=figures), name
    ours, theirs = (run.record["metrics"] for run in (packed, solo))
    for name in ("train_loss", "eval_loss", "eval_rewards_accuracies", "eval_rewards_margins"):
        assert ours[name] == pytest.approx(theirs[name], rel=figures, abs=figures), name
    for name in ("steps", "tokens", "trainable_parameters", "total_parameters"):
        assert ours[name] == theirs[name], name
    parents = ([parent["digest"] for parent in run.record["parents"]] for run in (packed, solo))
    assert next(parents) == next(parents)
    weights = [load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (packed, solo)]
    assert weights[0].keys() == weights[1].keys()
    distances = [
        float((weights[0][key].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30))
        for key, value in weights[1].items()
    ]
    assert max(distances) <= worst
    assert float(torch.tensor(distances).median()) <= median


def compare(
    cli, tmp_path: Path, base: tuple[str, ...], grid: Any, *tolerances: float, **settings: Any
) -> list[Run]:
    packed = run_pack(tmp_path / "pack", base, grid, **settings)
    for number, overrides in enumerate(grid):
        solo = cli(*base, *overrides, folder=f"solo{number}")
        assert solo.code == 0
        assert_equal(solo, packed[number], *tolerances)
    return packed


@pytest.mark.slow
def test_float64(cli, tmp_path):
    compare(cli, tmp_path, DOUBLE, GRID, 1e-8, 1e-8, 1e-8)


@pytest.mark.slow
def test_seeds_and_dropout_in_float64(cli, tmp_path, tiny_model):
    """Own initialisation, own order, own pairs split off, own masks; two cells at a time."""
    base = (*DOUBLE, *of_file(tmp_path, pairs(14)), "data.eval_split=0.2")
    base = (*base, "model.weights=pretrained", f"model.path={tiny_model}", "trainer.disable_dropout=false")
    grid = [
        (f"seed={seed}", f"lora.lora_dropout={rate}", f"lora.r={rank}")
        for seed, rate, rank in ((0, 0.1, 4), (1, 0.3, 8), (7, 0, 4))
    ]
    compare(cli, tmp_path, base, grid, 1e-8, 1e-8, 1e-8, max_cells=2)


def pairs(count: int) -> list[dict[str, str]]:
    """Rows of different length."""
    return [
        {"prompt": f"{n} squared?", "chosen": "It is " * (n % 3) + str(n * n), "rejected": str(n)}
        for n in range(2, count + 2)
    ]


def of_file(folder: Path, rows: list[dict[str, str]]) -> tuple[str, ...]:
    """Write a file of pairs; returns the words of the command that choose it."""
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return (f"data.path={file}", "data.eval_path=null")


@pytest.mark.slow
def test_every_loss_in_float64(cli, tmp_path):
    base = (*DOUBLE, "trainer.num_train_epochs=1", "trainer.warmup_steps=0")
    compare(cli, tmp_path, base, EACH_LOSS, 1e-8, 1e-8, 1e-8)


@pytest.mark.slow
def test_float32(cli, tmp_path):
    """Rewards are beta times differences of sums of some 500 nats, which float32 knows to 3e-5; so is the
    loss. A solo run differs as much from itself with ``precompute_ref_log_probs``."""
    packed = run_pack(tmp_path / "pack", BASE, GRID)
    for number, (overrides, beta) in enumerate(zip(GRID, (0.1, 0.5, 0.02, 0.1), strict=True)):
        solo = cli(*BASE, *overrides, folder=f"solo{number}")
        assert_equal(solo, packed[number], max(1e-5, 1e-4 * beta), 1e-3, 1e-5)


@pytest.mark.slow
def test_gradient_checkpointing_in_float64(cli, tmp_path):
    base = (*DOUBLE, "trainer.gradient_checkpointing=true")
    compare(cli, tmp_path, base, GRID[1:3], 1e-8, 1e-8, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo", "sft"])
def test_a_start_from_an_adapter_in_float64(cli, parent, tmp_path, recipe):
    """Every cell starts from the same adapter, which is the reference as well."""
    start = (*TINY, "lora.r=4", "trainer.learning_rate=1e-2", "model.dtype=float64")
    parent(*start)
    base = (*(DOUBLE if recipe == "dpo" else start), "adapter=start", "generation.samples=2")
    more = "trainer.beta=0.5" if recipe == "dpo" else "trainer.weight_decay=0.1"
    grid = [("trainer.learning_rate=1e-3",), ("trainer.learning_rate=3e-3", more, "trainer.max_grad_norm=0")]
    packed = run_pack(tmp_path / "pack", base, grid)
    for number, overrides in enumerate(grid):
        solo = cli(*base, *overrides, folder=f"solo{number}")
        assert solo.code == 0
        check = assert_equal if recipe == "dpo" else assert_equal_answers
        check(solo, packed[number], 1e-8, 1e-8, 1e-8)
        parents = [run.record["parents"][0] for run in (packed[number], solo)]
        assert [parent["path"] for parent in parents] == ["start", "start"]
        assert parents[0]["digest"] == parents[1]["digest"] == adapter_digest(Path("start/adapter"))
        before = [[line["before"] for line in run.lines("samples.jsonl")] for run in (solo, packed[number])]
        assert before[0] == before[1]


def test_the_reference_is_computed_once_for_all_cells(tmp_path, monkeypatch, tiny_model):
    """Each distinct sequence goes through the base once, however many cells, seeds and epochs there are,
    whatever each seed holds out, and whether two pairs have the same good answer."""
    seen: Counter[str] = Counter()

    def watched(model: Any, ids: torch.Tensor, *args: Any, **more: Any) -> Any:
        (alone,) = {layer._alone for layer in model.modules() if isinstance(layer, PackedLinear)}
        if alone:
            seen.update("".join(map(chr, row)).rstrip(chr(PADDING)) for row in ids.tolist())
        return token_logprobs(model, ids, *args, **more)

    monkeypatch.setattr("runner.packed.passes.token_logprobs", watched)
    again = {"prompt": "3 squared?", "chosen": "9", "rejected": "nine"}
    base = (*BASE, *of_file(tmp_path, [*pairs(13), again]), "data.eval_split=0.2")
    base = (*base, "model.weights=pretrained", f"model.path={tiny_model}")
    grid = [(f"seed={seed}", f"trainer.beta={beta}") for seed in (0, 1) for beta in (0.1, 0.5)]
    run_pack(tmp_path / "pack", base, grid)
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * 14 - 1


@pytest.mark.slow
def test_an_interrupted_pack_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    calm = run_pack(tmp_path / "calm", BASE, GRID[:2])
    step = PackedTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PackedTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pack(tmp_path / "cut", BASE, GRID[:2], checkpoint_seconds=0)
    monkeypatch.setattr(PackedTrainer, "training_step", step)
    for one, other in zip(calm, run_pack(tmp_path / "cut", BASE, GRID[:2]), strict=True):
        weights = [load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (one, other)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_held_out_pairs_are_told_where_each_has_a_loss_of_its_own(tmp_path):
    grid = [("trainer.beta=0.3",), ("trainer.loss_type=[sigmoid,sft]",)]
    for run in run_pack(tmp_path, (*BASE, "trainer.num_train_epochs=1"), grid):
        rows = run.lines("held_out.jsonl")
        assert [(row["index"], row["tokens"]) for row in rows] == [(0, 1), (1, 1), (2, 1)]
        mean = sum(row["loss"] for row in rows) / 3
        assert mean == pytest.approx(run.record["metrics"]["eval_loss"], rel=1e-6)


def grouped(*cells: tuple[str, ...]) -> list[tuple[int, str | None]]:
    """How many cells each group has, and why one runs alone."""
    configs = [
        run_config.check(run_config.parse(["recipe=dpo", "model=tiny", *cell], OBJECTIVES)).configs[0]
        for cell in cells
    ]
    found = group([Cell(str(n), "", "", list(cells[n]), own) for n, own in enumerate(configs)], {})
    return [(len(each.cells), each.alone) for each in found]


def test_what_may_differ_and_what_runs_alone():
    two = ("trainer.beta=0.5", "trainer.loss_type=ipo", "lora.r=4", "trainer.precompute_ref_log_probs=true")
    same = ("trainer.precompute_ref_log_probs=true",)
    assert grouped(same, two) == [(2, None)]
    for alone in ("trainer.ld_alpha=0.5", "trainer.use_weighting=true"):
        (count, reason), *_ = grouped((alone,), (alone, "trainer.beta=0.5"))
        assert count == 1
        assert alone.partition("=")[0] in str(reason)


@pytest.mark.slow
def test_cells_of_one_adapter_keep_its_shape(parent):
    parent(*TINY)
    start = ("adapter=start", "seed=0")
    assert grouped(start, (*start, "trainer.beta=0.5")) == [(2, None)]
    assert grouped(start, ("seed=0",))[0][0] == 1
    dropping = (*start, "trainer.disable_dropout=false")
    (count, reason), *_ = grouped(dropping, (*dropping, "trainer.beta=0.5"))
    assert count == 1
    assert "reference" in str(reason)
