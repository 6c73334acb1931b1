"""An adapter's scale out of its usual band: said once in a run, once of a sweep's cells, and recorded."""

import json
from pathlib import Path

import pytest

from helpers.command import QUIET, TINY, one
from helpers.packs import run_pack
from helpers.sweeps import WORKER
from recipes.run import run_recipe
from runner.__main__ import main
from runner.models.lora_scale import lora_scale
from runner.rules.scale import SCALE, adapter_scale, scale_notes, scale_summary
from runner.sweep import devices, processes

SHORT = (*TINY, *QUIET, "trainer.max_steps=1", "trainer.warmup_steps=0")
SAID = "adapter scale 32 (lora_alpha=256 / r=8), usual is 0.25 to 4: lora.lora_alpha=16"
ODD = ("lora.r=8", "lora.lora_alpha=256")


def scales(notes):
    return [note for note in notes if note.startswith("adapter scale")]


def test_a_run_says_it_once_and_records_it(cli, capsys):
    run = cli(*SHORT, *ODD)
    said = capsys.readouterr()
    assert run.code == 0
    assert scales(run.record["notes"]) == [SAID]
    assert " ".join((said.out + said.err).split()).count(SAID) == 1


def test_a_usual_scale_is_not_said(cli, capsys):
    run = cli(*SHORT)
    assert run.code == 0
    assert scales(run.record["notes"]) == []
    assert "adapter scale" not in "".join(capsys.readouterr())


def test_a_run_that_starts_from_an_adapter_cannot_change_it(parent, tmp_path):
    start = parent(*SHORT, *ODD)
    config = one(*SHORT, f"adapter={start.folder}", "recipe=dpo", "data=orders-pairs")
    assert scale_notes(config) == [SAID.replace("lora.lora_alpha=16", "it is the given adapter's own")]


def test_each_cell_of_a_pack_records_its_own(tmp_path):
    first, second = run_pack(tmp_path, SHORT, [ODD, ("lora.r=16", "lora.lora_alpha=1024")])
    assert scales(first.record["notes"]) == [SAID]
    assert [note[:16] for note in scales(second.record["notes"])] == ["adapter scale 64"]


def test_a_cell_that_runs_alone_records_what_its_sweep_has_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_recipe(one(*SHORT, *ODD, "output_dir=run"), "command", [], {"cell": {"job": "cell-1"}}) == 0
    assert scales(json.loads(Path("run/run.json").read_text())["notes"]) == [SAID]
    assert "adapter scale" not in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.report
def test_a_sweep_says_it_once_for_all_cells_and_its_report_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("worker.py").write_text(WORKER)
    monkeypatch.setattr(processes, "WORKER", ["worker.py"])
    monkeypatch.setattr(devices, "cuda_devices", list)
    assert main(["-m", "lora.r=2,4,16", "lora.lora_alpha=32", "output_dir=s"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    note = "adapter scale outside the usual 0.25 to 4 in 2 of 3 cells: lora.r=2 (16); lora.r=4 (8)"
    assert said.count(note) == said.count("adapter scale") == 1
    assert said.index(note) < said.index("pack-1: 3 cells"), "before anything is started"
    assert json.loads(Path("s/sweep.json").read_text())["notes"] == [note]
    assert note in Path("s/report.html").read_text()


def test_a_long_list_of_cells_is_cut():
    cells = [(f"lora.r={rank}", {"r": rank, "lora_alpha": 100}) for rank in (1, 2, 4, 8, 16, 50)]
    [note] = scale_summary(cells)
    assert note.endswith("in 5 of 6 cells: lora.r=1 (100); lora.r=2 (50); lora.r=4 (25); ...")
    assert scale_summary(cells[-1:]) == scale_summary([]) == []


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        ({"_target_": "peft.LoraConfig", "r": 16, "lora_alpha": 32}, 2),
        ({"_target_": "peft.LoraConfig", "r": 16, "lora_alpha": 32, "use_rslora": True}, 8),
        ({"_target_": "peft.LoraConfig", "r": 64}, 0.125),  # PEFT's own alpha
        ({"_target_": "peft.AdaLoraConfig", "init_r": 8, "lora_alpha": 16, "use_rslora": True}, 2),
        ({"_target_": "peft.IA3Config"}, None),
        ({"_target_": "peft.LoHaConfig", "r": 8, "alpha": 800}, None),
        ({"_target_": "peft.GoneConfig", "r": 8, "lora_alpha": 8}, None),
        ({"_target_": "peft.LoraConfig", "r": "many", "lora_alpha": 8}, None),
        ({"_target_": "peft.LoraConfig", "r": 0, "lora_alpha": 8}, None),
        ({}, None),
    ],
)
def test_the_scale_of_a_section(lora, scale):
    assert adapter_scale(lora) == scale


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_the_scale_is_that_of_the_layers(options):
    from peft import AdaLoraConfig, LoraConfig, get_peft_model
    from torch import nn

    def layer(config):
        model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config)
        return model.base_model.model[0]

    shape = {"target_modules": ["0"]}
    assert layer(LoraConfig(r=16, lora_alpha=24, **shape, **options)).scaling["default"] == lora_scale(
        24, 16, bool(options)
    )
    found = layer(AdaLoraConfig(init_r=12, target_r=8, lora_alpha=24, total_step=10, **shape, **options))
    assert found.scaling["default"] / found.ranknum["default"].item() == adapter_scale(
        {"_target_": "peft.AdaLoraConfig", "init_r": 12, "target_r": 8, "lora_alpha": 24, **options}
    )


def test_the_bounds_are_usual_themselves():
    [band] = SCALE.bands
    assert [value in band for value in (0.249, 0.25, 4, 4.01)] == [False, True, True, False]
