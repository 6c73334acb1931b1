"""What a sweep finds of its cells' models before it starts a process."""

import json

import psutil
import pytest

from helpers.sweeps import cells_of
from helpers.tiny_model import KINDS, random_model, using
from runner.core.errors import ConfigError
from runner.plan.rows import read_data
from runner.sweep import verdicts
from runner.sweep.check_models import check_models

SWEPT = ("model=tiny", "lora.r=2,4")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "lora.target_modules=[q_proj],[qproj]",
            "no modules 'qproj' (in lora.r=2,lora.target_modules=[qproj]",
        ),
        ("lora.layers_to_transform=[0],[7]", "no layer 7 (in lora.r=2,lora.layers_to_transform=[7]"),
        ("lora.target_modules=[q_proj],[lm_head]", "an adapter on the output head would not be trained"),
        ("lora.require_all=true lora.target_modules=all-linear,[q_proj]", "12 matrices have no adapter"),
    ],
)
@pytest.mark.parametrize("more", [(), ("recipe=plan",)])
def test_what_a_run_would_be_refused_for_is_found_before_any_starts(sweep, started, words, said, more):
    ran = sweep(*SWEPT, *words.split(), *more)
    assert ran.code == 2
    assert said in " ".join(ran.said.split())
    assert started() == []
    assert not ran.folder.exists()
    # of those that are started early, to import their libraries
    assert not [child for child in psutil.Process().children() if "worker.py" in " ".join(child.cmdline())]


@pytest.mark.parametrize("more", [(), ("recipe=plan",)])
def test_faulty_rows_of_every_cell_are_found_before_any_starts(sweep, started, monkeypatch, tmp_path, more):
    monkeypatch.setattr(verdicts, "read_data", read_data)  # which ``sweep`` leaves out
    good = [{"prompt": f"say {n}", "completion": str(n)} for n in range(20)]
    faulty = {"good": [], "bad": [{"prompt": "x", "completion": 5}], "worse": [{"prompt": 7}]}
    for name, rows in faulty.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*good, *rows]))
    paths = "data.path=" + ",".join(f"{name}.jsonl" for name in faulty)
    ran = sweep("model=tiny", "data=file", paths, "data.eval_split=0.2", "seed=0,1", *more)
    said = " ".join(ran.said.split())
    assert (ran.code, started(), ran.folder.exists()) == (2, [], False)
    for name in ("bad", "worse"):
        assert f"{name}.jsonl:21" in said
        assert f"(in data.path={name}.jsonl,seed=0 and 1 more)" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("lora.target_modules=[embed_tokens]", "adapters on embeddings have no packed form"),
        ("lora.modules_to_save=[embed_tokens]", "lora.modules_to_save=['embed_tokens'] is not packed"),
        ("lora.modules_to_save=[lm_head]", "lora.modules_to_save=['lm_head'] is not packed"),
    ],
)
def test_what_runs_alone_is_said_before_any_starts(sweep, started, words, reason):
    ran = sweep(*SWEPT, *words.split())
    assert ran.code == 0
    assert f"2 cells, as {reason}" in " ".join(ran.said.split())
    assert started() == ["cell-1:lora.r=2", "cell-2:lora.r=4"]


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        ("qwen3_moe", (), "adapters on expert weights have no packed form"),
        ("qwen3_moe", ("lora.target_modules=[q_proj]",), "a model with experts may have a loss of its own"),
        ("gpt2", (), None),
        ("qwen3", ("lora.target_modules=[embed_tokens]",), "adapters on embeddings have no packed form"),
        ("falcon_h1", (), "the model changes its logits (lm_head_multiplier)"),
        ("qwen3_5_text", (), None),
        ("lfm2", (), None),
        ("glm4_moe_lite", ("lora.target_modules=[q_a_proj]",), None),
    ],
)
def test_a_model_says_whether_its_cells_share_a_pack(tmp_path, monkeypatch, kind, words, reason):
    monkeypatch.chdir(tmp_path)
    model = random_model(tmp_path / "model", kind, **KINDS[kind])
    cells = cells_of(2, tmp_path / "s", *using(model), "lora.lora_dropout=0", *words)
    assert check_models(cells) == (dict.fromkeys((cell.name for cell in cells), reason) if reason else {})


def test_a_saved_adapter_says_so_too(cli, tmp_path):
    from helpers.command import QUIET, TINY

    assert (
        cli(*TINY, *QUIET, "lora.rank_pattern={q_proj: 2}", "trainer.max_steps=1", folder="start").code == 0
    )
    assert cli(*TINY, *QUIET, "trainer.max_steps=1", folder="plain").code == 0
    for folder, count in (("start", 2), ("plain", 0)):
        cells = cells_of(2, tmp_path / "s", "model=tiny", f"adapter={tmp_path / folder}")
        assert len(check_models(cells)) == count


def test_rows_that_a_model_would_mix_are_refused_in_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = random_model(tmp_path / "model", "lfm2", **KINDS["lfm2"])
    cells = cells_of(2, tmp_path / "s", *using(model), "trainer.packing=true")
    with pytest.raises(ConfigError, match="carry a state"):
        check_models(cells)


def test_a_model_that_is_not_here_is_left_to_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = cells_of(2, tmp_path / "s", "model.path=nobody/nothing", "model.architecture=null")
    assert check_models(cells) == {}
