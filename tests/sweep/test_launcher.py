"""What ``-m`` runs: its cells, their names and keys, what is refused, and how it is resumed."""

import json
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from helpers.locks import holding
from helpers.sweeps import Ran, alive, children_of, hanging, one
from recipes import OBJECTIVES
from runner.__main__ import main
from runner.cli import command, run_config
from runner.config.settings import RunConfig, SweepSettings
from runner.core.errors import ConfigError, ExitCode
from runner.core.folder_names import name_of
from runner.core.paths import PACKAGE
from runner.sweep import cells as cells_module
from runner.sweep import processes, run_sweep
from runner.sweep.cells import Cell, check_cells, code_of, expand, key_of


def issues(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        run_config.check(run_config.parse(list(words), OBJECTIVES))
    return [str(issue) for issue in caught.value.issues]


# --- names and keys


def test_a_name_says_what_differs_and_is_a_safe_folder(tmp_path):
    assert name_of(["lora.r=8", "trainer.learning_rate=1e-4"]) == "lora.r=8,trainer.learning_rate=1e-4"
    awkward = ["data.path='a/b, c=d\t.jsonl'", "lora.target_modules=[q_proj,v_proj]", "template.system=你好"]
    name = name_of(awkward)
    assert not set(name) & set("/\t '\"\\*?:")
    assert name.count(",") == 2
    (tmp_path / name).mkdir()
    assert name_of(["x=a,b"]) != name_of(["x=a", "b="])
    assert name_of(["x=%2C"]) != name_of(["x=','"]), "what is quoted cannot be mistaken for what was typed"


def test_a_long_name_is_cut_and_stays_its_own(tmp_path):
    names = [name_of([f"template.system={'é' * 200}{number}"]) for number in range(3)]
    assert len(set(names)) == 3
    for name in names:
        (tmp_path / f".{name}.json.tmp").touch()
        assert len(name.encode()) <= 120


def test_the_key_is_of_what_decides_a_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    run = one("data=file", "data.path=rows.jsonl")
    key = key_of(run)
    free = replace(run, output_dir="x", resume="auto", sweep=SweepSettings(repeat=3))
    assert key_of(free) == key
    assert key_of(replace(run, seed=1)) != key
    assert key_of(replace(run, lora={**run.lora, "r": 3})) != key
    rows.write_text('{"prompt": "a", "completion": "c"}\n')
    assert key_of(run) != key, "other rows"


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Let the code that computes cells be a copy of this one, with one text in one file replaced."""

    def use(file: str, before: str = "", after: str = "") -> None:
        copy = tmp_path / f"code-{len(list(tmp_path.glob('code-*')))}"
        for folder in ("runner", "recipes"):
            shutil.copytree(PACKAGE.parent / folder, copy / folder, ignore=shutil.ignore_patterns("*.json*"))
        text = (copy / file).read_text(encoding="utf-8")
        assert before in text
        (copy / file).write_text(text.replace(before, after, 1), encoding="utf-8")
        monkeypatch.setattr(cells_module, "PACKAGE", copy / "runner")

    return use


@pytest.mark.parametrize(
    ("file", "before", "after", "same"),
    [
        ("runner/data/labels.py", '"""', '"""More words. ', True),
        ("runner/training/trainer.py", "\n\n\n", "\n\n\n# why\n\n", True),
        ("runner/reports/leaderboard.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n", True),
        ("runner/export/merge.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n", True),
        ("runner/data/labels.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n", False),
        ("runner/packed/layers.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n", False),
        ("recipes/__init__.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n", False),
    ],
    ids=["docstring", "comment", "report", "export", "data", "packed", "recipe"],
)
def test_the_code_of_a_cell_is_what_decides_its_metrics(code, file, before, after, same):
    run = one()
    key, present = key_of(run), code_of(run)
    code(file, before, after)
    assert key_of(run) == key
    assert (code_of(run) == present) == same


def test_export_counts_where_the_recipe_exports(code):
    run = replace(one(), recipe="merge")
    present = code_of(run)
    code("runner/export/merge.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n")
    assert code_of(run) != present


def test_versions_of_libraries_count_as_code(monkeypatch):
    run = one()
    key, present = key_of(run), code_of(run)
    cells_module._libraries.cache_clear()
    monkeypatch.setattr(cells_module.environment, "package_versions", lambda: {"torch": "3.0"})
    assert key_of(run) == key
    assert code_of(run) != present
    cells_module._libraries.cache_clear()


def test_a_config_survives_the_job_file():
    run = one(
        "quantization=nf4", "lora.target_modules=[q_proj]", "data.path=[{path: 'embedded:orders_eval'}]"
    )
    cell = expand(["lora.r=8"], run, SweepSettings(), Path("s"))[0]
    told = json.loads(json.dumps(run_config.dataclasses.asdict(cell.config)))
    assert RunConfig.of(told) == cell.config


# --- cells


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


def test_a_cell_is_the_run_that_it_would_be_alone(sweep):
    ran = sweep("lora.r=4,8", "sweep.metric=train_loss", "seed=5")
    cell = ran.job("pack-1")["cells"][1]
    solo = one("lora.r=8", "seed=5")
    run = RunConfig.of(cell["config"])
    assert replace(run, output_dir=None) == solo
    assert run_config.to_yaml(run) == run_config.to_yaml(solo)
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


def test_a_cell_that_is_wrong_only_in_combination_is_refused_with_its_name(sweep, started):
    words = ["lora=r8,pissa", "quantization=none,nf4", "seed=0,1"]
    ran = sweep(*words)
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "quantization=none" in ran.said
    assert "in lora=pissa,quantization=nf4,seed=0 and 1 more" in ran.said
    assert "1 config error," in ran.said
    assert started() == []
    assert not ran.folder.exists()


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


def test_the_embedded_grid_is_a_sweep(sweep):
    ran = sweep("experiment=orders-sweep", flag=False)
    assert ran.code == 0
    assert len(ran.statuses) > 3
    assert list(ran.record["axes"]) == ["lora.r", "trainer.learning_rate"]


def test_a_saved_config_is_swept_over(sweep, place):
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text(run_config.to_yaml(one("lora=r8", "seed=3")))
    ran = sweep("--config-path", "run", "trainer.learning_rate=1e-4,2e-4")
    assert list(ran.statuses) == ["trainer.learning_rate=1e-4", "trainer.learning_rate=2e-4"]
    assert ran.job("pack-1")["cells"][0]["config"]["seed"] == 3


def test_without_output_dir_the_sweep_has_a_folder_of_its_own(sweep, place):
    assert sweep("lora.r=4,8", folder="").code == 0
    (found,) = (place / "outputs").rglob("sweep.json")
    assert found.parent.name.endswith("-sweep")
    assert sweep("lora.r=4,8", "hydra.sweep.dir=there", folder="").code == 0
    assert (place / "there" / "lora.r=8").is_dir()


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


# --- resuming


def test_the_same_command_runs_what_is_not_done(sweep, started):
    words = ["lora.r=4,8,16"]
    first = sweep(*words, plan={"lora.r=8": "failed"})
    assert first.code == ExitCode.FAILED
    assert first.record["status"] == "failed"
    assert first.statuses == {"lora.r=4": "completed", "lora.r=8": "failed", "lora.r=16": "completed"}
    assert "Odd: as planned" in first.record["cells"][1]["reason"]
    assert "output_dir=s" in first.said.partition("resume with")[2]
    assert started() == ["pack-1:lora.r=4,lora.r=8,lora.r=16"]
    again = sweep(*words)
    assert (again.code, again.record["status"]) == (0, "completed")
    assert "2 cells already" in again.said
    assert started() == ["cell-1:lora.r=8"]
    assert again.job("cell-1")["alone"] == "it failed in a pack before"
    assert [job["cells"] for job in again.record["jobs"]] == [["lora.r=4", "lora.r=16"], ["lora.r=8"]]
    last = sweep(*words)
    assert "nothing is left to run" in last.said
    assert started() == []


@pytest.mark.slow
def test_a_cell_that_fails_alone_twice_stays_failed(sweep, started, place):
    for _ in range(2):
        assert sweep("lora=dora,r8", plan={"lora=dora": "failed"}).code == ExitCode.FAILED
    started()
    ran = sweep("lora=dora,r8")
    assert ran.code == ExitCode.FAILED
    assert started() == []
    assert "lora=dora is not run again: it failed 2 times alone" in ran.said
    subprocess.run(["rm", "-r", str(place / "s" / "lora=dora")], check=True)
    assert sweep("lora=dora,r8").code == ExitCode.COMPLETED


def test_a_dropped_cell_is_done_and_a_diverged_one_is_not_repeated(sweep, started):
    ran = sweep("lora.r=4,8,16", plan={"lora.r=4": "dropped", "lora.r=8": "diverged"})
    assert ran.code == ExitCode.DIVERGED
    started()
    again = sweep("lora.r=4,8,16")
    assert again.code == ExitCode.DIVERGED
    assert "it diverged" in again.said
    assert started() == []


def test_a_child_that_dies_does_not_stop_the_others(sweep):
    ran = sweep("lora.r=4,8", "lora.use_dora=false,true", plan={"lora.r=8,lora.use_dora=false": "kill"})
    assert ran.code == ExitCode.FAILED
    assert ran.statuses == {
        "lora.r=4,lora.use_dora=false": "completed",
        "lora.r=4,lora.use_dora=true": "completed",
        "lora.r=8,lora.use_dora=false": "failed",
        "lora.r=8,lora.use_dora=true": "completed",
    }
    (reason,) = [entry["reason"] for entry in ran.record["cells"] if entry["status"] == "failed"]
    assert "SIGKILL" in reason
    assert "about to die" in reason
    assert "about to die" in (ran.folder / "jobs" / "pack-1.log").read_text()


def test_a_preempted_run_resumes_from_its_checkpoint(sweep, started):
    name = "lora=dora"
    ran = sweep("lora=dora,r8", plan={name: "checkpoint"})
    assert (ran.code, ran.statuses[name]) == (ExitCode.PREEMPTED, "preempted")
    started()
    kept = ran.folder / name / "checkpoints" / "checkpoint-1"
    assert kept.is_dir()
    assert sweep("lora=dora,r8").code == 0
    assert kept.is_dir(), "a folder with a checkpoint is left as it is"
    assert started() == [f"cell-1:{name}"]


@pytest.mark.slow
def test_a_result_of_another_config_is_refused_before_anything_runs(sweep, started):
    sweep("lora.r=4,8")
    before = started()
    ran = sweep("lora.r=4,8,16", "trainer.max_steps=7")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "lora.r=4: has a result of another config" in ran.said
    assert "new output_dir" in ran.said
    assert before
    assert started() == []
    assert sweep("lora.r=4,8,16").code == 0
    assert [line.partition(":")[2] for line in started()] == ["lora.r=16"]


def marked(ran: Ran) -> list[str]:
    return [entry["name"] for entry in ran.record["cells"] if entry["other_code"]]


EDIT = ("runner/training/trainer.py", "\n\n\n", "\n\n\nEXTRA = 1\n\n\n")


@pytest.mark.slow
def test_results_of_other_code_are_kept_and_marked(sweep, started, code):
    code(*EDIT[:1])
    first = sweep("lora.r=4,8")
    assert marked(first) == []
    started()
    code(EDIT[0], '"""', '"""Other words. ')
    again = sweep("lora.r=4,8,16")
    assert (again.code, marked(again)) == (0, [])
    assert "other code" not in again.said
    assert started() == ["cell-1:lora.r=16"]
    code(*EDIT)
    other = sweep("lora.r=4,8,16,32")
    assert other.code == 0
    assert started() == ["cell-2:lora.r=32"]
    assert marked(other) == ["lora.r=4", "lora.r=8", "lora.r=16"]
    assert "3 cells (lora.r=4, lora.r=8, lora.r=16) kept, computed by other code" in other.said
    assert "sweep.redo=code" in other.said


@pytest.mark.slow
def test_redo_runs_the_results_of_other_code_again(sweep, started, code, place):
    sweep("lora.r=4,8", plan={"lora.r=8": "dropped"})
    (place / "s" / "lora.r=4" / "old").touch()
    assert started()
    assert sweep("lora.r=4,8", "sweep.redo=code").code == 0
    assert started() == [], "this code has computed them"
    code(*EDIT)
    redone = sweep("lora.r=4,8", "sweep.redo=code")
    assert (redone.code, marked(redone)) == (0, [])
    assert started() == ["pack-2:lora.r=4,lora.r=8"]
    assert not (place / "s" / "lora.r=4" / "old").exists()
    assert redone.statuses == {"lora.r=4": "completed", "lora.r=8": "completed"}
    again = sweep("lora.r=4,8", "sweep.redo=code")
    assert (started(), marked(again)) == ([], [])


@pytest.mark.slow
def test_a_cell_resumed_under_other_code_says_so(sweep, started, code):
    name = "lora=dora"
    sweep("lora=dora,r8", plan={name: "checkpoint"})
    started()
    code(*EDIT)
    ran = sweep("lora=dora,r8")
    assert started() == [f"cell-1:{name}"]
    assert f"1 cell ({name}) resumed from a checkpoint of other code" in ran.said
    assert marked(ran) == [name, "lora=r8"]
    code(EDIT[0])
    back = sweep("lora=dora,r8")
    assert marked(back) == [name], "two codes have computed it"


@pytest.mark.slow
def test_a_cell_that_diverged_under_other_code_is_tried_again(sweep, started, code):
    sweep("lora.r=4,8", plan={"lora.r=8": "diverged"})
    started()
    code(*EDIT)
    ran = sweep("lora.r=4,8")
    assert (ran.code, marked(ran)) == (0, ["lora.r=4"])
    assert [line.partition(":")[2] for line in started()] == ["lora.r=8"]


def test_the_only_thing_to_redo_is_code():
    (found,) = issues("-m", "lora.r=4,8", "sweep.redo=all")
    assert "sweep.redo" in found
    assert "code" in found


def test_a_folder_that_is_no_sweep_is_refused_and_left_alone(sweep, place):
    (place / "s").mkdir()
    (place / "s" / "multirun.yaml").write_text("mine")
    ran = sweep("lora.r=4,8")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert "is not empty and is not a sweep folder" in ran.said
    assert (place / "s" / "multirun.yaml").read_text() == "mine"
    assert len(list((place / "s").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_do_not_run_one_sweep(sweep, place):
    sweep("lora.r=4,8")
    with holding(place / "s" / "jobs") as other:
        ran = sweep("lora.r=4,8")
    assert ran.code == ExitCode.CONFIG_ERROR
    assert f"another process runs this sweep (host {socket.gethostname()}, pid {other})" in ran.said
    assert sweep("lora.r=4,8").code == 0


def test_batches_of_a_sweeper_are_one_sweep(sweep, started):
    ran = sweep("lora.r=4,8,16", "hydra.sweeper.max_batch_size=2", plan={"lora.r=4": "failed"})
    assert ran.code == ExitCode.FAILED
    assert started() == ["pack-1:lora.r=4,lora.r=8", "cell-1:lora.r=16"]
    assert list(ran.statuses.values()) == ["failed", "completed", "completed"]


# --- ending early


def test_an_exit_code_in_words():
    assert "SIGKILL; the kernel does so when memory runs out" in processes.how_it_ended(-9)
    assert processes.how_it_ended(75).endswith("exit code 75 (preempted)")


@pytest.mark.parametrize("asked", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_children_and_says_how_to_resume(place, asked):
    process = hanging(place)
    (child,) = children_of(process)
    process.send_signal(asked)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == ExitCode.PREEMPTED
    assert not alive(child)
    record = json.loads((place / "s" / "sweep.json").read_text())
    assert {entry["name"]: entry["status"] for entry in record["cells"]} == {
        "lora.r=4": "preempted",
        "lora.r=8": "preempted",
    }
    assert "python -m runner -m lora.r=4,8 output_dir=s" in said.partition("resume with")[2]
    assert 'Traceback (most recent call last):\n  File "/' not in said.partition("ending 1 job")[0]


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


# --- values chosen by optuna

STUDY = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=6",
    "hydra.sweeper.n_jobs=3",
    "hydra.sweeper.sampler.seed=1",
    "lora.r=4,8,16",
    "trainer.learning_rate=tag(log,interval(1e-5,1e-3))",
)


@pytest.fixture
def optuna():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra optuna is not installed")


def test_without_optuna_the_command_to_install_it_is_named(monkeypatch, place):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    (found,) = issues("-m", *STUDY[:1], *STUDY[4:])
    assert "pip install 'hydra-optuna-sweeper" in found
    (found,) = issues("-m", "lora.r=interval(4,8)")
    assert "hydra/sweeper=optuna" in found


@pytest.mark.slow
def test_a_study_packs_the_cells_of_each_batch(optuna, sweep, started):
    ran = sweep(*STUDY)
    assert ran.code == 0
    jobs = [line.partition(":") for line in started()]
    assert [name for name, _, _ in jobs] == ["pack-1", "pack-2"]
    assert len(ran.statuses) == 6
    assert ran.record["axes"]["lora.r"] == ["4", "8", "16"]
    assert len(set(ran.record["axes"]["trainer.learning_rate"])) == 6
    found = yaml.safe_load((ran.folder / "optimization_results.yaml").read_text())
    best = json.loads((ran.folder / ran.record["best"] / "run.json").read_text())
    assert found["best_value"] == best["metrics"]["eval_loss"]
    assert sweep(*STUDY).code == 0
    assert started() == [], "the same study again: every cell is done"


def test_a_study_over_repeats_sees_their_mean(optuna, sweep, started):
    ran = sweep(
        *STUDY[:1], "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "lora.r=8", "sweep.repeat=3"
    )
    assert list(ran.statuses) == ["seed=0", "seed=1", "seed=2"]
    found = yaml.safe_load((ran.folder / "optimization_results.yaml").read_text())
    values = [json.loads((ran.folder / name / "run.json").read_text()) for name in ran.statuses]
    assert found["best_value"] == pytest.approx(sum(run["metrics"]["eval_loss"] for run in values) / 3)


@pytest.mark.slow
def test_a_failed_cell_is_a_failed_trial(optuna, sweep):
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "lora.r=4,8"]
    words += ["hydra/sweeper/sampler=grid", "seed=0,1"]
    stops = sweep(*words, plan={"lora.r=4,seed=0": "failed", "lora.r=8,seed=0": "failed"})
    assert stops.code == ExitCode.FAILED
    assert "the sweeper stops" in stops.said
    assert "resume with" in stops.said
    further = sweep(
        *words, "hydra.sweeper.max_failure_rate=1", plan={"lora.r=4,seed=0": "failed"}, folder="t"
    )
    assert further.code == ExitCode.FAILED
    assert sorted(further.statuses.values()) == ["completed", "completed", "completed", "failed"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.metric=exact_match_after"], "hydra.sweeper.direction=maximize"),
        (["hydra.sweeper.direction=maximize"], "hydra.sweeper.direction=minimize"),
        (["sweep.zip=[lora.r,trainer.learning_rate]"], "sweep.zip walks a grid"),
        (["hydra.sweeper.custom_search_space=os.system"], "no function may be named here"),
        (["hydra.sweeper.sampler._target_=os.system"], "'os.system' is not allowed"),
        (["trainer.learning_rate=interval(-1,1)"], "trainer.learning_rate=-1.0"),
    ],
)
def test_a_mistake_in_a_study_is_found_before_it_begins(optuna, words, said):
    assert any(said in found for found in issues("-m", *STUDY, *words))
