"""A 4-bit export is kept where it moves the model no further than 4 bits move the untrained base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runner.config.settings import ModelSettings, RunConfig
from runner.core.errors import RunnerError
from runner.export.to_int4 import export_int4
from runner.models.model import byte_tokenizer
from runner.runs.run_folder import RunFolder

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,  # bitsandbytes repacks blocks of 64 for this CPU
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "initializer_range": 0.1,  # large enough that wrong weights show in the logits
}
TEXTS = [list(range(first, first + 60)) for first in (0, 70, 130)]


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path) -> Path:
    torch.manual_seed(0)
    return save(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)), tmp_path / "base")


@pytest.fixture
def merged(base, tmp_path) -> Path:
    """The base with a change of low rank in one matrix of each layer, as an adapter makes it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    for layer in model.model.layers:
        change = torch.randn(64, 4) @ torch.randn(4, 64)
        layer.self_attn.q_proj.weight.data += 0.01 * change
    return save(model, tmp_path / "merged")


def export(base: Path, merged: Path, texts: list[list[int]] = TEXTS) -> RunFolder:
    path = merged.parent / "run"
    path.mkdir()
    folder = RunFolder(path, "python -m runner", [], "recipe: merge\n", 0)
    export_int4(RunConfig(recipe="merge", model=ModelSettings(path=str(base))), folder, merged, texts)
    return folder


@pytest.fixture
def broken(merged, monkeypatch) -> None:
    """Exchange a matrix of two layers whenever the merged model is quantised."""
    load = AutoModelForCausalLM.from_pretrained

    def wrong(folder: Path, **options: Any) -> Any:
        model = load(folder, **options)
        if "quantization_config" in options and folder == merged:
            first, second = (layer.mlp for layer in model.model.layers)
            first.down_proj, second.down_proj = second.down_proj, first.down_proj
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", wrong)


def test_a_good_export_is_kept_with_both_divergences(base, merged, capsys):
    folder = export(base, merged)
    facts = folder.record["int4"]
    assert facts["proof"]["kl"] == folder.metrics["int4_kl"]
    assert facts["base_kl"] > 0
    assert facts["allowed_kl"] == pytest.approx(1.25 * facts["base_kl"] + 0.02)
    assert folder.metrics["int4_kl"] <= facts["allowed_kl"]
    said = capsys.readouterr().out
    assert f"{facts['proof']['kl']:.3g} nats a token" in said
    assert f"the untrained base loses {facts['base_kl']:.3g} in NF4" in said
    assert {path.name for path in folder.path.iterdir()} >= {"model-nf4"}


def test_an_export_with_wrong_weights_in_one_layer_is_not_kept(base, merged, broken):
    with pytest.raises(RunnerError, match=r"KL .* nats a token, more than .* \(the untrained base loses"):
        export(base, merged)
    assert [path.name for path in (merged.parent / "run").iterdir() if path.is_dir()] == []


def test_rows_with_tokens_that_the_base_lacks_are_held_to_an_absolute_bound(base, merged, capsys):
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": 150}
    (base / "config.json").write_text(json.dumps(config))
    facts = export(base, merged).record["int4"]
    assert (facts["base_kl"], facts["allowed_kl"]) == (None, 1.0)
    assert "the bound is absolute" in capsys.readouterr().out
