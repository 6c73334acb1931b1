"""A merge that could not be right is refused, or leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig

from helpers.command import LEARNS
from helpers.merges import RECORD, from_elsewhere, merge
from helpers.tiny_model import tiny_base
from runner.models.model import byte_tokenizer


@pytest.fixture(scope="session")
def trained(trained):
    """A run that has learnt something, by its overrides, trained once for all tests."""
    return lambda *words: trained(*LEARNS, *words)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("option", ["prefix", "prompt", "ptuning"])
def test_an_adapter_of_the_prompt_is_refused(cli, trained, option, capsys):
    run = merge(cli, trained(f"lora={option}"))
    assert run.code == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert not run.folder.exists()


def test_another_base_of_the_same_shape_is_refused(cli, trained, capsys):
    run = merge(cli, trained(), "seed=1")
    assert run.code == 2
    assert "belongs to another base" in capsys.readouterr().err
    assert not run.folder.exists()


def test_an_adapter_that_does_not_fit_the_base_is_refused(cli, trained, capsys, tmp_path):
    """Without the record of its base, only the shapes can tell."""
    from transformers import AutoModelForCausalLM

    alone = tmp_path / "alone"
    shutil.copytree(trained() / "adapter", alone)
    (alone / "base.json").unlink()
    config = tiny_base().config
    for number, change in enumerate(({"hidden_size": 32}, {"num_hidden_layers": 1})):
        other = type(config).from_dict(config.to_dict() | change)
        AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "other")
        byte_tokenizer().save_pretrained(tmp_path / "other")
        source = ("model=smollm2-135m", "model.path=other", "data.path=embedded:orders_train")
        run = merge(cli, alone, *source, folder=f"merged{number}")
        assert run.code == 2
        assert f"adapter={alone}" in capsys.readouterr().err
        assert not run.folder.exists()


def test_what_is_not_the_adapter_model_is_not_kept(cli, trained, monkeypatch, capsys):
    from runner.export.merge import Skeleton

    def forget(self, path, unit, tensors):
        names = [name for name in self._slots if name.startswith(f"{path}.")]
        return {name: self._read(tensors, name) for name in names}

    monkeypatch.setattr(Skeleton, "_merge", forget)
    run = merge(cli, trained())
    assert run.code == 1
    assert "is not the adapter model" in capsys.readouterr().err
    assert run.files() == RECORD
    assert run.record["status"] == "failed"
    assert run.record["metrics"]["merge_kl"] > 0.01


def test_a_failure_in_the_middle_leaves_no_half_model(cli, trained, monkeypatch):
    from runner.export.merge import Skeleton

    def fail(self, tensors, names):
        yield from ()
        raise OSError("no space left")

    monkeypatch.setattr(Skeleton, "merged", fail)
    run = merge(cli, trained())
    assert run.code == 1
    assert run.files() == RECORD


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(cli, trained, monkeypatch, capsys):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    run = merge(cli, trained())
    assert run.code == 2
    assert "0.00 GB free" in capsys.readouterr().err
    assert not run.folder.exists()


def test_a_folder_that_holds_something_is_left_alone(cli, trained, capsys):
    Path("merged").mkdir()
    Path("merged/mine.txt").write_text("mine")
    assert merge(cli, trained()).code == 2
    assert [path.name for path in Path("merged").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("word", "said"), [("adapter=nowhere", "nowhere"), ("adapter=null", "adapter")])
def test_a_missing_adapter_is_refused(cli, capsys, word, said):
    run = cli("recipe=merge", "model=tiny", word)
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not run.folder.exists()


def test_a_base_whose_own_weights_are_quantised_is_refused(cli, local_base, capsys):
    from_elsewhere(tiny_base(), "start", LoraConfig(target_modules=["q_proj"]))
    file = local_base / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(values))
    run = merge(cli, "start", "model=smollm2-135m", f"model.path={local_base}")
    assert run.code == 2
    assert "quantised themselves" in capsys.readouterr().err
    assert not run.folder.exists()
