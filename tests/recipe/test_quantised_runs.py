"""Runs on a quantised base, on a CPU too."""

from __future__ import annotations

import pytest
import torch

from helpers.command import QUIET, TINY
from helpers.tiny_model import prompt_logits, tiny_base
from runner.config.settings import ModelSettings
from runner.models.fp8 import Fp8Config
from runner.models.model import find_base, load_model


@pytest.mark.sampled(3)
@pytest.mark.parametrize("option", ["nf4", "fp4", "int8"])
def test_a_quantised_base_trains_every_adapter_layer_on_cpu(cli, option):
    from safetensors.torch import load_file

    # an evaluation between two steps made bitsandbytes drop all gradients on some CPUs
    run = cli(
        *TINY,
        f"quantization={option}",
        "trainer.precision=auto",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
    )
    assert run.code == 0
    weights = load_file(run.folder / "adapter/adapter_model.safetensors")
    trained = [bool(value.any()) for name, value in weights.items() if "lora_B" in name]
    assert len(trained) == 14
    assert all(trained)


def test_an_8_bit_optimizer_is_replaced_without_cuda_and_this_is_said(cli):
    if torch.cuda.is_available():
        pytest.skip("CUDA has it")
    run = cli(*TINY, "trainer.optim=paged_adamw_8bit", "trainer.max_steps=1")
    assert run.code == 0
    assert any("paged_adamw_8bit" in note for note in run.record["notes"])


@pytest.mark.parametrize("optimizer", ["lion_8bit", "paged_ademamix_32bit", "galore_adamw_8bit"])
def test_an_optimizer_whose_rule_only_cuda_has_is_not_replaced_by_another(cli, capsys, optimizer):
    if torch.cuda.is_available():
        pytest.skip("CUDA has it")
    assert cli(*TINY, f"trainer.optim={optimizer}").code == 2
    assert f"{optimizer} needs CUDA" in capsys.readouterr().err


@pytest.mark.gpu
def test_loftq_makes_up_for_part_of_the_quantisation_error(tmp_path):
    """On CUDA, from a checkpoint: the logits before training are nearer to those of the full model."""
    from recipes import OBJECTIVES
    from runner.cli import run_config
    from runner.models.adapter import add_adapter
    from runner.models.build import peft_config, quantization_config
    from runner.models.model import byte_tokenizer, choose_precision

    tiny_base().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    full = prompt_logits(tiny_base().cuda())
    errors = {}
    for option in ("r16", "loftq"):
        words = [*TINY, "model.weights=pretrained", f"model.path={tmp_path / 'base'}", "quantization=nf4"]
        (run,) = run_config.check(run_config.parse([*words, f"lora={option}"], OBJECTIVES)).configs
        base, precision = find_base(run.model), choose_precision(run)
        model = load_model(base, quantization_config(run, precision), precision.dtype, seed=0)
        model = add_adapter(model, peft_config(run, "CAUSAL_LM"), 0, base.folder)
        errors[option] = (prompt_logits(model) - full).norm()
    assert errors["loftq"] < 0.9 * errors["r16"]


def test_loftq_without_what_it_needs_is_refused(cli, capsys):
    assert cli(*TINY, "lora=loftq", "quantization=nf4").code == 2
    assert "LoftQ" in capsys.readouterr().err


@pytest.mark.report
@pytest.mark.sampled(3)
@pytest.mark.parametrize("option", ["nf4", "fp4", "int8"])
def test_what_the_base_is_quantised_to_is_said_and_kept(cli, capsys, option):
    words = (*TINY, *QUIET, f"quantization={option}", "trainer.max_steps=1")
    run = cli(*words)
    assert f"Lora over {option}, fp32" in capsys.readouterr().out
    kept = run.record["model"]["quantization"]
    assert (kept["name"], kept["load_in_8bit"]) == (option, option == "int8")
    assert f"Lora over {option}" in (run.folder / "adapter/README.md").read_text(encoding="utf-8")
    assert f"base in {option}" in (run.folder / "report.html").read_text(encoding="utf-8")
    chat = cli("recipe=chat", f"adapter={run.folder}", "prompt=a", "chat.max_new_tokens=1", folder="chat")
    assert chat.record["model"]["quantization"]["name"] == option


def test_the_quantization_of_a_checkpoint_is_kept_too():
    base = find_base(ModelSettings(architecture="tiny", weights="random"))
    assert "quantization" not in base.record()
    assert base.record(Fp8Config())["quantization"]["name"] == "fp8"
    base.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert base.record()["quantization"] == {"name": "gptq", "quant_method": "gptq", "bits": 4}
