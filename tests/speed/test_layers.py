"""Compiled layers: what is changed around them leaves their numbers as they were."""

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from helpers.tiny_model import TINY_MODEL
from runner.models.keyed_dropout import key_dropout
from runner.models.model import find_base, load_model
from runner.speed.layers import FastLayers
from runner.speed.pieces import Pieces

IDS = torch.arange(48).view(2, 24) % 250


def results(found, layers):
    """Hidden states, gradients of the adapter, and the number formats that its matrices are given."""
    read = []
    adapter = next(each for each in found.modules() if isinstance(each, LoraLayer))
    watch = adapter.lora_A["default"].register_forward_pre_hook(lambda _, given: read.append(given[0].dtype))
    found.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), layers.on(True), layers.not_compiled():
        hidden = found.get_base_model().base_model(input_ids=IDS, use_cache=False).last_hidden_state
        hidden.float().square().sum().backward()
    watch.remove()
    return [hidden, *(each.grad for each in found.parameters() if each.grad is not None)], set(read)


def test_an_adapter_in_float32_reads_what_its_base_does_and_learns_the_same(monkeypatch):
    base = load_model(find_base(TINY_MODEL), None, torch.bfloat16, seed=0)
    found = get_peft_model(base, LoraConfig(target_modules="all-linear", lora_dropout=0.1)).train()
    torch.manual_seed(1)
    for name, each in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.05)
    assert key_dropout(found, seed=0) is not None
    monkeypatch.setattr(
        FastLayers, "_compile", lambda self: self._compiled.extend(layer.forward for layer in self.layers)
    )
    fast = FastLayers(found, Pieces(compile=True))
    once, read = results(found, fast)
    assert read == {torch.bfloat16}
    expected, cast = results(found, FastLayers(found, Pieces()))
    assert cast == {torch.float32}
    assert len(once) > 1
    assert all(torch.equal(one, other) for one, other in zip(once, expected, strict=True))
    assert all(each.cast_input_dtype_enabled for each in found.modules() if isinstance(each, LoraLayer))
