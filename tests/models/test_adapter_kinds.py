"""Adapters of any kind: what is trained and saved, the copy that a loss compares with, and the biases."""

from __future__ import annotations

import peft
import pytest
import torch

from helpers.tiny_model import random_model, tiny_base
from runner.config.adapters import find_adapter
from runner.core.errors import ConfigError
from runner.models.adapter import AdapterSaver, add_adapter, add_reference, attach, continue_adapter, using

IDS = torch.arange(48).view(2, 24) % 250
PROJECTIONS = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS = {
    "lora": peft.LoraConfig(**PROJECTIONS),
    "embedding": peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"]),
    "dora": peft.LoraConfig(use_dora=True, **PROJECTIONS),
    "pissa": peft.LoraConfig(init_lora_weights="pissa", **PROJECTIONS),
    "parameters": peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=[], target_parameters=["q_proj.weight"]
    ),
    "whole": peft.LoraConfig(modules_to_save=["lm_head"], **PROJECTIONS),
    "adalora": peft.AdaLoraConfig(total_step=10, **PROJECTIONS),
    "ia3": peft.IA3Config(feedforward_modules=[], **PROJECTIONS),
    "loha": peft.LoHaConfig(**PROJECTIONS),
    "lokr": peft.LoKrConfig(**PROJECTIONS),
    "vera": peft.VeraConfig(**PROJECTIONS),
    "vblora": peft.VBLoRAConfig(vector_length=16, num_vectors=32, **PROJECTIONS),
    "oft": peft.OFTConfig(**PROJECTIONS),
    "ln": peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def move(model, far=0.05):
    """Train what is trained, as far as a copy could tell."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += far * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_is_the_adapter_and_stays_as_it_is(kind):
    torch.manual_seed(0)
    model = add_adapter(tiny_base(), KINDS[kind], 0, None).eval()
    move(model)
    before = logits(model)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    add_reference(model)
    assert torch.equal(logits(model), before)
    assert [name for name, each in model.named_parameters() if each.requires_grad] == trained
    move(model)
    assert not torch.equal(logits(model), before)
    model.set_adapter("ref")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_trained_is_saved(kind, tmp_path):
    torch.manual_seed(0)
    model = add_adapter(tiny_base().bfloat16(), KINDS[kind], 0, None).eval()
    saver = AdapterSaver(model)
    move(model, far=1.0)
    saver.save(tmp_path)
    again = continue_adapter(tiny_base().bfloat16(), find_adapter(str(tmp_path))).eval()
    if kind != "pissa":  # which is saved as a difference to the base, that bfloat16 rounds
        assert torch.equal(logits(again), logits(model))
    names, expected = ([n for n, each in m.named_parameters() if each.requires_grad] for m in (again, model))
    assert names == expected


def test_what_is_trained_in_the_base_has_no_copy():
    model = add_adapter(tiny_base(), peft.LoraConfig(**PROJECTIONS), 0, None)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"cannot be a copy of this Lora adapter: .*norm.weight is trained"):
        add_reference(model)


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Makes a model whose layers have biases."""
    folder = random_model(tmp_path_factory.mktemp("biased"), "qwen2")
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_come_and_go_with_their_adapter(biased, bias):
    torch.manual_seed(0)
    of_base = logits(biased())
    model = add_adapter(biased(), peft.LoraConfig(bias=bias, **PROJECTIONS), 0, None).eval()
    move(model)
    start = logits(model)
    add_reference(model)
    move(model)
    trained = logits(model)
    weights = [each.clone() for each in model.parameters()]
    assert not torch.equal(trained, start)
    with model.disable_adapter():
        assert torch.equal(logits(model), of_base)
    model.set_adapter("ref")
    assert torch.equal(logits(model), start)
    model.set_adapter("default")
    assert torch.equal(logits(model), trained)
    assert all(map(torch.equal, weights, model.parameters()))


def test_adapters_with_biases_leave_the_base_and_each_other_alone(biased, tmp_path):
    torch.manual_seed(0)
    expected, found = {None: logits(biased())}, []
    for name, bias in (("one", "all"), ("two", "none"), ("three", "all")):
        model = add_adapter(biased(), peft.LoraConfig(bias=bias, **PROJECTIONS), 0, None).eval()
        move(model)
        expected[name] = logits(model)
        model.save_pretrained(tmp_path / name)
        found.append(find_adapter(str(tmp_path / name)))
    together = attach(biased(), found)
    assert torch.equal(logits(together), expected["one"])
    for name in ("two", None, "three", "one", None):
        with using(together, name):
            assert torch.equal(logits(together), expected[name])
