"""What a run saves is what it has trained: plain PEFT makes the same of it on the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from helpers.command import QUIET, TINY
from helpers.tiny_model import build, prompt_logits
from runner.models.adapter import AdapterSaver, add_adapter

WEIGHTS = "adapter_model.safetensors"
SOME = ["q_proj", "down_proj"]


def trained(model: Any) -> Any:
    """The model as after some steps: each weight that is trained has moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each += 0.05 * torch.randn_like(each)
    return model.eval()


def check_saved_is_trained(config: Any, folder: Path) -> None:
    model = add_adapter(build("qwen2"), config, 0, None)
    saver = AdapterSaver(model)
    expected = prompt_logits(trained(model))
    saver.save(folder)
    loaded = PeftModel.from_pretrained(build("qwen2"), folder).eval()
    assert (prompt_logits(build("qwen2").eval()) - expected).abs().max() > 1e-2
    torch.testing.assert_close(prompt_logits(loaded), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora", "mica", True])
@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True},
        {"rank_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head", "norm"]},
        {"bias": "all"},
        {"target_modules": [*SOME, "embed_tokens"]},
        {"trainable_token_indices": [3, 40, 70, 71, 75]},
        {"target_parameters": ["mlp.up_proj.weight"]},
    ],
    ids=str,
)
def test_an_adapter_that_changed_its_base_is_saved_for_the_original_one(init, more, tmp_path):
    """PEFT's own conversion leaves out whatever is no pair of LoRA's matrices."""
    if init == "mica" and {"use_dora", "target_parameters"} & set(more):
        return  # PEFT has no such adapter
    fields = {"r": 8, "lora_alpha": 12, "target_modules": SOME, "task_type": "CAUSAL_LM"} | more
    check_saved_is_trained(LoraConfig(init_lora_weights=init, **fields), tmp_path)


@pytest.mark.parametrize("feedforward", [None, ["down_proj"]])
def test_ia3_on_all_linear_layers_is_saved_as_it_can_be_loaded(feedforward, tmp_path):
    config = IA3Config(target_modules="all-linear", feedforward_modules=feedforward, task_type="CAUSAL_LM")
    check_saved_is_trained(config, tmp_path)


def test_a_run_fails_whose_adapter_was_not_saved_whole(cli, monkeypatch, capsys):
    save = AdapterSaver.save

    def lose(self, folder):
        save(self, folder)
        first, *rest = sorted((tensors := load_file(folder / WEIGHTS)).items())
        assert first[0] in tensors
        save_file(dict(rest), folder / WEIGHTS)

    monkeypatch.setattr(AdapterSaver, "save", lose)
    run = cli(*TINY, *QUIET, "trainer.max_steps=1")
    assert run.code == 1
    assert run.record["status"] == "failed"
    said = " ".join("".join(capsys.readouterr()).split())
    assert "PEFT cannot load what was saved in run/adapter: 1 of its tensors that the base needs" in said


def test_an_activated_adapter_is_trained(cli):
    """PEFT finds where it begins in its own pass, past which the fast loss goes."""
    from helpers.tiny_model import TINY_MODEL
    from runner.models.model import find_base

    (token,) = find_base(TINY_MODEL).tokenizer.encode("e")
    run = cli(*TINY, *QUIET, f"lora.alora_invocation_tokens=[{token}]", "trainer.max_steps=2")
    assert run.code == 0
    held = load_file(run.folder / "adapter" / WEIGHTS)
    assert all(value.any() for name, value in held.items() if ".lora_B." in name)
