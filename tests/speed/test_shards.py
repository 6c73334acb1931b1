"""A base in parts, of a group of one process: what its layers compute, compiled too, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers.tiny_model import random_model
from runner.config.settings import ParallelSettings
from runner.core.errors import RunnerError
from runner.models.model import keep_trainable
from runner.parallel.group import Group
from runner.speed import shards
from runner.speed.layers import FastLayers
from runner.speed.pieces import Pieces

SETTINGS = ParallelSettings(engine="fsdp2", reshard_after_forward=True)


@pytest.fixture
def alone():
    """torch's process group, of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def model(tmp_path) -> Any:
    """Adapters that have learnt, on a base in 4 bits whose embeddings are not tied."""
    folder = random_model(tmp_path / "model", "qwen3")
    base = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
    )
    found = get_peft_model(keep_trainable(base), LoraConfig(target_modules="all-linear")).to(torch.bfloat16)
    torch.manual_seed(1)
    for name, each in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.05)
    return found.train()


def results(model: Any, pieces: Pieces) -> list[torch.Tensor]:
    """The logits, and the gradients of all that is trained."""
    ids = torch.arange(40).reshape(2, 20)
    model.zero_grad()
    with FastLayers(model, pieces).on(training=True):
        logits = model(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
    return [logits.detach(), *(each.grad for each in model.parameters() if each.requires_grad)]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_in_parts_compute_what_whole_ones_do(alone, model, compiled):
    pieces = Pieces(compile=compiled)
    whole, device, dtype = results(model, pieces), model.device, model.dtype
    shards.shard(model, SETTINGS, Group(0, 1))
    assert sum(isinstance(each, FSDPModule) for each in model.modules()) == 3  # two layers and the decoder
    assert (model.device, model.dtype) == (device, dtype)
    parts = results(model, pieces)
    assert len(whole) == len(parts) == 29
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_the_table_of_tokens_is_no_weight_of_the_device(alone, model):
    table = model.get_input_embeddings().weight
    shards.shard(model, SETTINGS, Group(0, 1))
    assert model.get_input_embeddings().weight is table
    assert not any(each is table for each in model.parameters())


def test_a_table_that_another_module_has_too_goes_to_the_device(alone, tmp_path):
    folder = random_model(tmp_path / "tied", "qwen3", tie_word_embeddings=True)
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    shards.shard(model, SETTINGS, Group(0, 1))
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)


def test_a_layer_that_does_not_come_back_as_it_was_is_an_error(alone, model, monkeypatch):
    def loses(module: Any, **options: Any) -> None:
        if hasattr(module, "self_attn"):
            module.self_attn.q_proj.weight.data.view(torch.int32)[3] += 1
        real(module, **options)

    real = shards.fully_shard
    monkeypatch.setattr(shards, "fully_shard", loses)
    with pytest.raises(RunnerError, match="not the one that was loaded"):
        shards.shard(model, SETTINGS, Group(0, 1))
