"""A cell's name, and the keys by which its result is known again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.sweeps import one
from runner.cli import run_config
from runner.cli.saved_config import to_yaml
from runner.config.settings import RunConfig, SweepSettings
from runner.core.folder_names import name_of
from runner.runs.resume import repeated
from runner.sweep import cells as cells_module
from runner.sweep.cells import code_of, expand, key_of


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


@pytest.mark.sampled(4)
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


@pytest.mark.slow
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


def test_what_only_a_sweep_reads_does_not_tell_runs_apart(tmp_path):
    run = one("lora.r=4")
    saved = replace(run, sweep=SweepSettings(metric="eval_loss"))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(to_yaml(saved))
    assert repeated(tmp_path, run) is not None
    assert repeated(tmp_path, one("lora.r=8")) is None
