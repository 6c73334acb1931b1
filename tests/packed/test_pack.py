"""What a pack survives: an end in the middle, members that leave, a device that is too small."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from helpers.command import ADAPTER, RECORD, TINY
from helpers.packs import run_pack
from helpers.rows import ANSWERS
from helpers.tiny_model import tiny_base
from runner.packed import CannotPack, memory
from runner.packed.adapters import pack_adapters
from runner.packed.layers import PackedLinear
from runner.packed.trainer import PackedTrainer
from runner.sweep.cells import Cell
from runner.sweep.packable import group

BASE = (
    *TINY,
    *ANSWERS,
    "trainer.max_steps=6",
    "trainer.per_device_train_batch_size=2",
    "generation.samples=1",
)
CELLS = [
    ("lora.r=4", "trainer.learning_rate=1e-3"),
    ("lora.r=8", "trainer.learning_rate=3e-3", "lora.lora_dropout=0.1"),
    ("lora.r=4", "trainer.learning_rate=3e-4"),
]
FILES = RECORD | ADAPTER | {"held_out.jsonl"}


def weights(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "adapter_model.safetensors")


def assert_same(one: Any, other: Any) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The pack when nothing happens to it."""
    return run_pack(tmp_path_factory.mktemp("calm"), BASE, CELLS)


@pytest.mark.report
def test_every_cell_has_a_complete_run_folder(calm):
    for run in calm:
        assert run.files() == FILES
        assert run.record["status"] == "completed"
        assert len(run.lines("held_out.jsonl")) == 4
        rows = run.lines("held_out.jsonl")
        assert sum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows) == pytest.approx(
            run.record["metrics"]["eval_loss"], rel=1e-4
        )


def test_an_adapter_of_a_pack_loads_in_plain_peft_and_gives_the_same_logits(tmp_path):
    configs = [
        LoraConfig(r=rank, target_modules="all-linear", use_rslora=stable, task_type="CAUSAL_LM")
        for rank, stable in ((4, False), (8, True), (2, False))
    ]
    packed = pack_adapters(tiny_base(), configs, [0, 1, 2])
    for layer in (layer for layer in packed.model.modules() if isinstance(layer, PackedLinear)):
        for row, config in zip(layer.lora_B.data, packed.configs, strict=True):
            row[:, : config.r].normal_(std=0.1)
    ids = torch.randint(0, 256, (2, 9))
    packed.model.eval()
    with torch.no_grad():
        together = packed.model(input_ids=ids.repeat(3, 1)).logits.unflatten(0, (3, 2))
    for index in range(3):
        packed.save(index, tmp_path / str(index))
        alone = PeftModel.from_pretrained(tiny_base(), tmp_path / str(index)).eval()
        with torch.no_grad():
            assert torch.allclose(alone(input_ids=ids).logits, together[index], atol=1e-5)
        assert not torch.allclose(together[index], together[index - 1], atol=1e-2)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("chosen", [[0, 1, 2], [0, 2]])
def test_an_interrupted_pack_goes_on_to_the_same_weights(calm, tmp_path, monkeypatch, chosen):
    """All its cells, or some of them: dropout, optimizer, schedule and order of rows resume."""
    step = PackedTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PackedTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pack(tmp_path, BASE, CELLS, checkpoint_seconds=0)
    seen: list[int] = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PackedTrainer, "training_step", watched)
    runs = run_pack(tmp_path, BASE, CELLS, chosen=chosen)
    assert seen == [4, 5]
    for index, run in zip(chosen, runs, strict=True):
        assert_same(run, calm[index])
        assert run.record["metrics"]["train_loss"] == pytest.approx(
            calm[index].record["metrics"]["train_loss"]
        )


@pytest.mark.slow
def test_halving_drops_the_worst_and_leaves_the_others_as_they_were(calm, tmp_path):
    runs = run_pack(tmp_path, BASE, CELLS, halving=[0.5], keep=0.6)
    statuses = [run.record["status"] for run in runs]
    assert sorted(statuses) == ["completed", "completed", "dropped"]
    gone = runs[statuses.index("dropped")]
    facts = gone.record["dropped"]
    assert (facts["step"], facts["fraction"], facts["rank"], facts["of"]) == (3, 0.5, 3, 3)
    measured = {
        index: line["eval_loss"]
        for index, run in enumerate(runs)
        for line in run.lines("metrics.jsonl")
        if "eval_loss" in line and line["step"] == 3
    }
    assert measured[statuses.index("dropped")] == max(measured.values()) == facts["eval_loss"]
    assert not (gone.folder / "adapter").exists()
    for index, status in enumerate(statuses):
        if status == "completed":
            assert_same(runs[index], calm[index])


@pytest.mark.slow
def test_halving_is_decided_once(calm, tmp_path, monkeypatch):
    """A pack that is killed after a decision, with and without a checkpoint behind it, decides the same."""
    step = PackedTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    for seconds in (0, 1000):  # a checkpoint after every step, and none at all
        folder = tmp_path / str(seconds)
        monkeypatch.setattr(PackedTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_pack(folder, BASE, CELLS, halving=[0.5], keep=0.6, checkpoint_seconds=seconds)
        decided = json.loads((folder / "work" / "halved.json").read_text())
        monkeypatch.setattr(PackedTrainer, "training_step", step)
        runs = run_pack(folder, BASE, CELLS, halving=[0.5], keep=0.6)
        assert [run.record["status"] for run in runs].count("dropped") == 1
        assert json.loads((folder / "work" / "halved.json").read_text()) == decided
        for index, run in enumerate(runs):
            if run.record["status"] == "completed":
                assert_same(run, calm[index])


def test_a_cell_that_diverges_leaves_the_others_as_they_were(calm, tmp_path):
    runs = run_pack(
        tmp_path, BASE, [*CELLS, ("lora.r=4", "trainer.learning_rate=1e30", "trainer.warmup_steps=0")]
    )
    assert [run.record["status"] for run in runs] == ["completed"] * 3 + ["diverged"]
    assert "at step" in runs[3].record["error"]["message"]
    for run, same in zip(runs, calm, strict=False):
        assert_same(run, same)


def test_a_cell_whose_held_out_loss_is_not_finite_has_diverged(tmp_path):
    wild = ("lora.r=4", "trainer.learning_rate=1e30", "trainer.warmup_steps=0")
    runs = run_pack(tmp_path, (*BASE, "trainer.max_steps=1", "generation.samples=0"), [CELLS[0], wild])
    assert [run.record["status"] for run in runs] == ["completed", "diverged"]
    assert "the held-out loss after step 1 is nan" in runs[1].record["error"]["message"]
    assert not (runs[1].folder / "adapter").exists()


def test_a_pack_of_which_nothing_is_left_ends(tmp_path):
    wild = (
        "trainer.learning_rate=1e30",
        "trainer.warmup_steps=0",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
    )
    runs = run_pack(tmp_path, BASE, [(*wild, "lora.r=4"), (*wild, "lora.r=8")])
    assert [run.record["status"] for run in runs] == ["diverged"] * 2


@pytest.mark.slow
def test_steps_between_two_lines_of_the_log_count(cli, tmp_path):
    base = (*BASE, "trainer.logging_steps=4", "trainer.eval_strategy=steps", "trainer.eval_steps=2")
    solo = cli(*base, *CELLS[0], folder="solo")
    packed = run_pack(tmp_path / "pack", base, CELLS)[0]
    for name in ("tokens", "steps"):
        assert packed.record["metrics"][name] == solo.record["metrics"][name]
    assert packed.record["metrics"]["train_loss"] == pytest.approx(
        solo.record["metrics"]["train_loss"], rel=1e-5
    )
    steps = [
        [
            (line["step"], name)
            for line in run.lines("metrics.jsonl")
            for name in ("loss", "eval_loss")
            if name in line
        ]
        for run in (solo, packed)
    ]
    assert steps[0] == steps[1]


def test_running_out_of_memory_halves_the_pass_and_changes_nothing(calm, tmp_path, monkeypatch):
    whole, tried = PackedTrainer._pass, []

    def small(self: Any, inputs: Any, first: int, last: int, counts: Any) -> Any:
        tried.append(last - first)
        if last - first > 1:
            raise torch.OutOfMemoryError("too small")
        return whole(self, inputs, first, last, counts)

    monkeypatch.setattr(PackedTrainer, "_pass", small)
    runs = run_pack(tmp_path, BASE, CELLS)
    assert tried[:5] == [3, 2, 1, 1, 1]
    for run, same in zip(runs, calm, strict=True):
        first, second = weights(run), weights(same)
        assert all(torch.allclose(first[key], second[key], rtol=1e-4, atol=1e-6) for key in first)


@pytest.mark.parametrize(("estimate", "room", "expected"), [(6, 8, 6), (2, 8, 6), (6, 3, 3), (2, 5, 4)])
def test_the_estimate_is_tried_before_the_first_step(monkeypatch, estimate, room, expected):
    """A device with room for so many adapters: a pack of 6 takes what is left of it, and no more."""

    def attempt(passes: Any, first: int, last: int, rows: int, longest: int) -> None:
        if last - first > room:
            raise torch.OutOfMemoryError("too small")
        peak[0] = last - first

    peak = [0]
    monkeypatch.setattr(memory, "_forward_backward", attempt)
    monkeypatch.setattr(memory, "free_bytes", lambda: room)
    for name, value in (("memory_allocated", 0), ("reset_peak_memory_stats", None), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[0])
    passes: Any = SimpleNamespace(cells_per_pass=estimate, adapters=SimpleNamespace(model=None))
    memory.probe_cells_per_pass(passes, cells=6, rows=1, longest=100)
    assert passes.cells_per_pass == expected


def cell(name: str, *overrides: str) -> Cell:
    from recipes import OBJECTIVES
    from runner.cli import run_config

    (run,) = run_config.check(run_config.parse([*TINY, *overrides], OBJECTIVES)).configs
    return Cell(name, name, name, list(overrides), run)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["lora.use_dora=true"], "lora.use_dora=True is not packed"),
        (["lora=none"], "full fine-tuning is not packed"),
        (["lora=ia3"], "peft.IA3Config is not packed"),
        (["lora=pissa"], "lora.init_lora_weights=pissa_niter_4 is not packed"),
        (["trainer.packing=true"], "trainer.packing=True is not packed"),
        (["trainer.optim=adafactor"], "trainer.optim=adafactor is not packed"),
        (["trainer.neftune_noise_alpha=5"], "trainer.neftune_noise_alpha=5 is not packed"),
        (
            ["trainer.lr_scheduler_type=reduce_lr_on_plateau", "trainer.eval_strategy=epoch"],
            "does not depend on the step alone",
        ),
        (["recipe=orpo", "data=orders-pairs"], "recipe=orpo is not packed"),
    ],
)
def test_what_cannot_be_packed_runs_alone(overrides, reason):
    groups = group([cell("a"), cell("b", "lora.r=4"), cell("odd", *overrides)], {})
    assert [[c.name for c in found.cells] for found in groups] == [["a", "b"], ["odd"]]
    assert groups[0].alone is None
    assert reason in str(groups[1].alone)


@pytest.mark.parametrize("where", ["modules", "attention"])
def test_a_base_with_dropout_of_its_own_is_not_packed(where):
    """Its random numbers would be others than in a solo run: losses were 0.06 apart."""

    def dropping():
        base = tiny_base()
        if where == "modules":
            base.drop = torch.nn.Dropout(0.1)
        else:
            base.get_submodule("model.layers.0.self_attn").attention_dropout = 0.1
        return base

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    with pytest.raises(CannotPack, match="dropout of its own"):
        pack_adapters(dropping(), [config], [0])
    if where == "modules":  # TRL switches these off for preferences
        pack_adapters(dropping(), [config], [0], drops=False)


def test_what_differs_beyond_the_adapter_makes_another_pack():
    cells = [
        cell(str(number), f"lora.r={2 + number % 2}", f"data.max_rows={20 + number // 2}")
        for number in range(4)
    ]
    assert [[c.name for c in found.cells] for found in group(cells, {})] == [["0", "1"], ["2", "3"]]
    seeds = [cell(str(seed), f"seed={seed}") for seed in (0, 1)]  # random weights: another base
    assert [found.alone is None for found in group(seeds, {})] == [False, False]
