"""A reference's pass in the policy's code: what it computes is the reference, to the last bit."""

import copy
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny_model import TINY_MODEL
from runner.models.model import find_base, load_model
from runner.speed.decoder import FastDecoder
from runner.speed.pieces import Pieces
from runner.speed.reference import Reference, adapters_in_use

IDS = torch.arange(48).view(2, 24) % 250
PLACES = tuple(torch.ones_like(IDS).nonzero().T)


def policy(dtype=torch.float32, learned=True, **options):
    base = load_model(find_base(TINY_MODEL), None, dtype, seed=0)
    found = get_peft_model(base, LoraConfig(**{"target_modules": "all-linear", **options})).train()
    if learned:
        _learn(found, seed=1)
    return found


def _learn(found, seed):
    torch.manual_seed(seed)
    for name, parameter in found.named_parameters():
        if ".default" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def hidden(found):
    with torch.no_grad():
        return found.get_base_model().base_model(input_ids=IDS, use_cache=False).last_hidden_state


@contextmanager
def using(found, adapter):
    found.set_adapter(adapter)
    try:
        yield
    finally:
        found.set_adapter("default")


@pytest.mark.parametrize("layers", ["all-linear", ["q_proj", "embed_tokens"]])
def test_the_policys_adapters_compute_what_the_base_does(layers):
    found = policy(target_modules=layers)
    of_policy = hidden(found)
    with found.disable_adapter():
        expected = hidden(found)
    assert not torch.equal(of_policy, expected)
    reference = Reference(found)
    before = copy.deepcopy(found.state_dict())
    flags = {name: each.requires_grad for name, each in found.named_parameters()}
    with found.disable_adapter():
        with reference.in_place():
            assert adapters_in_use(found) == ("default",)
            assert torch.equal(hidden(found), expected)
        assert adapters_in_use(found) == ()
        assert torch.equal(hidden(found), expected)
    assert flags == {name: each.requires_grad for name, each in found.named_parameters()}
    assert all(torch.equal(each, before[name]) for name, each in found.state_dict().items())
    assert torch.equal(hidden(found), of_policy)


def test_a_copy_of_the_adapter_is_the_reference_of_one_that_is_trained_further():
    found = policy()
    found.add_adapter("ref", found.peft_config["default"])
    theirs = {name: each.clone() for name, each in found.state_dict().items() if ".ref." in name}
    with using(found, "ref"):
        for name, each in found.named_parameters():
            if ".ref." in name:
                torch.nn.init.normal_(each, std=0.1)
                theirs[name] = each.detach().clone()
        expected = hidden(found)
    assert not torch.equal(hidden(found), expected)
    reference = Reference(found)
    with using(found, "ref"):
        with reference.in_place():
            assert adapters_in_use(found) == ("default",)
            assert torch.equal(hidden(found), expected)
        assert adapters_in_use(found) == ("ref",)
    assert all(torch.equal(each, theirs[name]) for name, each in found.state_dict().items() if name in theirs)


@pytest.mark.parametrize(
    ("options", "known"),
    [({}, True), ({"modules_to_save": ["lm_head"]}, False), ({"lora_bias": True}, False)],
)
def test_what_else_is_trained_is_not_taken_for_the_references(options, known):
    assert Reference(policy(**options)).known is known


@pytest.mark.slow
def test_compiled_layers_give_a_fresh_policy_and_its_reference_the_same_bits(monkeypatch):
    """As layers do that are not compiled; the code of a pass without gradients would round elsewhere."""
    monkeypatch.setattr("runner.speed.layers.ROUNDED", {"emulate_precision_casts": False})
    found = policy(torch.bfloat16, learned=False)
    decoder = FastDecoder(found, Pieces(chunked_loss=True, compile=True))
    of_policy = decoder(IDS, PLACES)
    assert of_policy.requires_grad
    with torch.no_grad(), found.disable_adapter():
        of_reference = decoder(IDS, PLACES)
    assert not of_reference.requires_grad
    assert torch.equal(of_policy, of_reference)
    _learn(found, seed=2)
    with torch.no_grad(), found.disable_adapter():
        assert torch.equal(decoder(IDS, PLACES), of_reference)
    assert not torch.equal(decoder(IDS, PLACES), of_reference)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_first_rewards_on_cuda_are_nothing(cli):
    shared = ("recipe=dpo", "model=smollm2-135m", "model.weights=random", "trainer.precision=bf16")
    run = cli(*shared, "trainer.max_steps=3", "generation.samples=0", "data.max_rows=40")
    assert {"compile", "cuda_graphs"} <= {name for name, on in run.record["speed"].items() if on is True}
    key = "rewards/margins"
    margins = [line[key] for line in run.lines("metrics.jsonl") if key in line]
    assert margins[0] == 0
    assert margins[-1] != 0
