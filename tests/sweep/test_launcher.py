"""What ``-m`` runs: its cells, their names and keys, what is refused, and how it is resumed."""

import html
import time
from dataclasses import replace

import pytest

from helpers.command import issues
from helpers.sweeps import one
from recipes import OBJECTIVES
from runner.__main__ import main
from runner.cli import run_config
from runner.cli.saved_config import to_yaml
from runner.config.adapters import find_adapter
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, ExitCode
from runner.sweep import run_sweep
from runner.sweep.cells import Cell, check_cells, key_of


def test_a_sweep_of_two_axes(sweep, started):
    ran = sweep("lora.r=4,8", "trainer.learning_rate=1e-4,3e-4")
    assert ran.code == ExitCode.COMPLETED
    names = [f"lora.r={r},trainer.learning_rate={rate}" for r in (4, 8) for rate in ("1e-4", "3e-4")]
    assert list(ran.statuses) == names
    assert set(ran.statuses.values()) == {"completed"}
    assert started() == [f"pack-1:{','.join(names)}"]
    record = ran.record
    assert record["status"] == "completed"
    assert record["axes"] == {"lora.r": ["4", "8"], "trainer.learning_rate": ["1e-4", "3e-4"]}
    assert record["best"] == "lora.r=8,trainer.learning_rate=3e-4"
    assert record["command"].startswith("python -m runner -m lora.r=4,8")
    assert record["jobs"] == [{"name": "pack-1", "cells": names, "alone": None}]
    assert record["cells"][1]["overrides"] == {"lora.r": "4", "trainer.learning_rate": "3e-4"}
    found = {path.name for path in ran.folder.iterdir()}
    assert found == {"sweep.json", "leaderboard.csv", "report.html", "jobs", *names}
    assert "4 cells together" in ran.said
    assert "recipe=chat adapter=s" in ran.said


@pytest.mark.report
def test_a_best_cell_that_is_a_whole_model_is_used_by_its_path(sweep):
    ran = sweep("lora=none", "trainer.learning_rate=1e-4,3e-4")
    model = "\"model.path='s/trainer.learning_rate=3e-4/model'\""
    assert f"use it python -m runner recipe=chat {model}" in " ".join(ran.said.split())
    assert f"recipe=chat {model}" in html.unescape((ran.folder / "report.html").read_text())
    with pytest.raises(ConfigError) as found:
        find_adapter("s")
    assert found.value.issues[0].hint.endswith(model)


def test_a_cell_is_the_run_that_it_would_be_alone(sweep):
    ran = sweep("lora.r=4,8", "sweep.metric=train_loss", "seed=5")
    cell = ran.job("pack-1")["cells"][1]
    solo = one("lora.r=8", "seed=5")
    run = RunConfig.of(cell["config"])
    assert replace(run, output_dir=None) == solo
    assert to_yaml(run) == to_yaml(solo)
    assert run.output_dir == "s/lora.r=8"
    assert cell["key"] == key_of(solo)


def test_what_cannot_be_packed_runs_alone_and_says_why(sweep, started):
    ran = sweep("lora.r=4,8", "lora.use_dora=false,true")
    assert [line.partition(":")[0] for line in started()] == ["pack-1", "cell-1", "cell-2"]
    assert ran.job("cell-1")["alone"]
    assert "lora.use_dora=True is not packed" in ran.said


def test_zip_walks_axes_together(sweep):
    ran = sweep("lora.r=4,8,16", "lora.lora_alpha=8,8,32", "seed=0,1", "sweep.zip=[lora.r,lora.lora_alpha]")
    pairs = {
        (entry["overrides"]["lora.r"], entry["overrides"]["lora.lora_alpha"]) for entry in ran.record["cells"]
    }
    assert pairs == {("4", "8"), ("8", "8"), ("16", "32")}
    assert len(ran.statuses) == 6


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora.r=4,8", "sweep.zip=[lora.r,lora.lora_alpha]"], ["lora.lora_alpha is not an axis", "lora.r"]),
        (["lora.r=4,8", "seed=1,2,3", "sweep.zip=[lora.r,seed]"], ["lora.r has 2, seed has 3"]),
        (["lora.r=4,8", "seed=1,2", "sweep.zip=[[lora.r,seed],[seed,lora.r]]"], ["named twice"]),
        (["lora.r=4,8", "sweep.zip=[lora.r]"], ["sweep.zip", "two axes or more"]),
        (["lora.r=4,8", "sweep.repeat=0"], ["sweep.repeat=0", "at least 1"]),
        (["lora.r=4,8", "sweep.keep=1"], ["above 0 and below 1"]),
        (["lora.r=4,8", "sweep.halving=[0.5,0.25]"], ["rising fractions"]),
        (["lora.r=4,8", "sweep.halving=[0.5,1]"], ["rising fractions"]),
        (["lora.r=4,8", "sweep.halving=[0.5]", "data.eval_path=null", "data.metric=null"], ["no"]),
        (["lora.r=4,8", "sweep.metric='a b'"], ["sweep.metric", "eval_loss"]),
        (["lora.r=4,8", "sweep.metrics=x"], ["'sweep.metric'"]),
        (["lora.r=4,8", "sweep.repeat=1,2"], ["sweep.repeat is the same for all cells"]),
        (["seed=0,1", "sweep.repeat=2"], ["sweep.repeat=2 chooses the seeds"]),
        (["output_dir=a,b"], ["output_dir is not an axis"]),
        (["lora.r=8,8"], ["two cells of the sweep are the same run"]),
        (["lora.r=4,8", "hydra/launcher=basic", "sweep.repeat=2"], ["no effect with hydra/launcher=basic"]),
    ],
    ids=lambda value: " ".join(value)[-60:],
)
def test_a_mistake_in_a_sweep_is_found_before_it_begins(words, said):
    found = issues("-m", *words)
    assert [text for text in said if not any(text in issue for issue in found)] == []
    assert len(found) <= 2


def test_the_section_sweep_has_no_effect_without_a_sweep():
    (found,) = issues("sweep.repeat=3")
    assert "sweep.repeat has no effect without -m" in found


def test_repeats_are_cells_of_one_group(sweep):
    ran = sweep("lora.r=4,8", "sweep.repeat=2", "seed=7")
    assert list(ran.statuses) == [f"lora.r={r},seed={seed}" for r in (4, 8) for seed in (7, 8)]
    assert {entry["group"] for entry in ran.record["cells"]} == {"lora.r=4", "lora.r=8"}
    assert ran.record["axes"] == {"lora.r": ["4", "8"]}
    assert ran.record["cells"][1]["overrides"] == {"lora.r": "4"}
    assert [cell["config"]["seed"] for cell in ran.job("pack-1")["cells"]] == [7, 8, 7, 8]
    alone = sweep("sweep.repeat=3", folder="t")
    assert list(alone.statuses) == ["seed=0", "seed=1", "seed=2"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${mul:2,${lora.r}}", 16),
        ("${mul:0.5,${lora.r}}", 4),
        ("${add:${lora.r},1}", 9),
        ("${div:${lora.r},2}", 4),
    ],
)
def test_a_value_follows_from_another(text, value):
    runs = run_config.check(
        run_config.parse(["-m", "lora.r=8,64", f"lora.lora_alpha={text}"], OBJECTIVES)
    ).configs
    assert runs[0].lora["lora_alpha"] == value
    assert isinstance(runs[0].lora["lora_alpha"], int)
    assert runs[1].lora["lora_alpha"] != value


def test_arithmetic_that_makes_no_sense_is_named():
    assert "divided by 0" in issues("trainer.learning_rate=${div:1,0}")[0]
    assert "is not a number" in issues("trainer.learning_rate=${mul:1,a}")[0]
    assert "expected int, got float" in issues("lora.r=${div:1,3}")[0]


def test_cells_are_not_pushed_over_each_other(sweep, started):
    ran = sweep("lora.r=4,8", "push_to=me/orders")
    assert (ran.code, started()) == (ExitCode.CONFIG_ERROR, [])
    assert "2 cells would be pushed there, one over the other" in ran.said
    assert "recipe=merge adapter=s push_to=me/orders" in " ".join(ran.said.split())
    whole = sweep("lora=none", "seed=0,1", "push_to=me/orders")
    assert "hf upload me/orders s/CELL/model" in " ".join(whole.said.split())
    assert sweep("lora.r=4,8", "push_to=me/${lora.r}").code == ExitCode.COMPLETED


def test_a_cell_that_is_wrong_only_in_combination_is_refused_with_its_name(sweep, started):
    words = ["lora=r8,pissa", "quantization=none,nf4", "seed=0,1"]
    ran = sweep(*words)
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "quantization=none" in ran.said
    assert "in lora=pissa,quantization=nf4,seed=0 and 1 more" in ran.said
    assert "1 config error," in ran.said
    assert started() == []
    assert not ran.folder.exists()


@pytest.mark.slow
def test_cells_that_are_the_same_run_are_refused_with_both_names(sweep, place):
    found = issues("-m", "lora=r8,r16", "lora.r=4,5", "lora.lora_alpha=16")
    assert "lora=r16 lora.r=4: two cells of the sweep are the same run" in found[0]
    assert "lora=r8 lora.r=4" in found[0]
    # alone each value makes a difference, but the second experiment decides what the options differ in
    (place / "conf" / "experiment").mkdir(parents=True)
    header = "# @package _global_\n"
    (place / "conf" / "experiment" / "one.yaml").write_text(header)
    (place / "conf" / "experiment" / "two.yaml").write_text(header + "lora: {r: 4, lora_alpha: 8}\n")
    ran = sweep("--config-dir", "conf", "lora=r8,r16", "experiment=one,two")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "lora=r16,experiment=two: is the same run as lora=r8,experiment=two" in ran.said


def test_cells_named_alike_are_refused():
    run = one()
    first = Cell("a", "a", "sha256:1", [], run)
    assert "quotes only" in next(check_cells([first, replace(first, key="sha256:2")])).message


def test_a_grid_in_a_file_starts_by_itself(sweep, place):
    (place / "conf" / "experiment").mkdir(parents=True)
    grid = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lora.r: 4,8\n"
    text = f"# @package _global_\n{grid}sweep: {{repeat: 2}}\n"
    (place / "conf" / "experiment" / "mine.yaml").write_text(text)
    ran = sweep("--config-dir", "conf", "experiment=mine", "trainer.learning_rate=1e-4,2e-4", flag=False)
    assert ran.code == 0
    assert len(ran.statuses) == 8
    assert "lora.r=4,trainer.learning_rate=1e-4,seed=0" in ran.statuses


@pytest.mark.slow
def test_the_embedded_grid_is_a_sweep(sweep):
    ran = sweep("experiment=orders-sweep", flag=False)
    assert ran.code == 0
    assert len(ran.statuses) > 3
    assert list(ran.record["axes"]) == ["lora.r", "trainer.learning_rate"]


@pytest.mark.slow
def test_a_saved_config_is_swept_over(sweep, place):
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text(to_yaml(one("lora=r8", "seed=3")))
    ran = sweep("--config-path", "run", "trainer.learning_rate=1e-4,2e-4")
    assert list(ran.statuses) == ["trainer.learning_rate=1e-4", "trainer.learning_rate=2e-4"]
    assert ran.job("pack-1")["cells"][0]["config"]["seed"] == 3


def test_without_output_dir_the_sweep_has_a_folder_of_its_own(sweep, place):
    assert sweep("lora.r=4,8", folder="").code == 0
    (found,) = (place / "outputs").rglob("sweep.json")
    assert found.parent.name.endswith("-sweep")
    assert sweep("lora.r=4,8", "hydra.sweep.dir=there", folder="").code == 0
    assert (place / "there" / "lora.r=8").is_dir()


@pytest.mark.slow
def test_a_checkpoint_is_no_start_of_a_sweep(sweep, place):
    (place / "old" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    ran = sweep("lora.r=4,8", "resume=old")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "the same command with the same output_dir resumes" in ran.said


def test_the_basic_launcher_still_runs_cells_in_this_process(place, monkeypatch):
    seen = []
    monkeypatch.setattr("recipes.run.run_recipe", lambda run, *rest, **more: seen.append(run) or 0)
    assert main(["-m", "lora.r=4,8", "hydra/launcher=basic", "output_dir=s"]) == 0
    assert [run.output_dir for run in seen] == ["s/lora.r=4,output_dir=s", "s/lora.r=8,output_dir=s"]


def test_a_file_with_classes_for_hydra_is_refused(place):
    (place / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n"
    (place / "conf" / "experiment" / "mine.yaml").write_text(text)
    assert "no class may be named here" in issues("--config-dir", "conf", "experiment=mine")[0]


def test_batches_of_a_sweeper_are_one_sweep(sweep, started):
    ran = sweep("lora.r=4,8,16", "hydra.sweeper.max_batch_size=2", plan={"lora.r=4": "failed"})
    assert ran.code == ExitCode.FAILED
    assert started() == ["pack-1:lora.r=4,lora.r=8", "cell-1:lora.r=16"]
    assert list(ran.statuses.values()) == ["failed", "completed", "completed"]


@pytest.mark.slow
def test_composing_many_cells_takes_seconds(sweep, monkeypatch):
    monkeypatch.setattr(run_sweep.Sweep, "run", lambda self, cells, axes: seen.extend(cells))
    monkeypatch.setattr(run_sweep.Sweep, "outcome", lambda self, cells: (0.0, None))
    monkeypatch.setattr(run_sweep.Sweep, "finish", lambda self: 0)
    seen: list[Cell] = []
    began = time.process_time()
    sweep("lora.r=range(1,9)", "trainer.learning_rate=1e-4,2e-4")
    assert len(seen) == 16
    assert time.process_time() - began < 10


def test_each_cell_may_have_as_many_interpolations_as_a_config(sweep, monkeypatch):
    monkeypatch.setattr("runner.cli.plain.MOST_OF_A_CONFIG", 60)
    assert sweep("lora=r8,r16,dora", "speed=auto,plain").code == 0
