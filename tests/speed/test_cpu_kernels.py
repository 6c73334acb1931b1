"""Attention and LoRA layers on a CPU: the values and gradients of the library's own, where it has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from runner.speed import cpu_kernels, flat
from runner.speed.cpu_kernels import causal_attention, lora_forwards, replaced
from runner.speed.decoder import FastDecoder
from runner.speed.pieces import Pieces

SIZES: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 99}
HEADS: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def lora_model(**options) -> Any:
    """Two layers with an adapter whose B is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **options)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)), config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def hidden_and_gradients(model: Any, pieces: Pieces) -> list[torch.Tensor]:
    """Hidden states of the tokens of two rows, one of them padded, and the gradients of the adapter."""
    torch.manual_seed(1)
    ids, mask = torch.randint(99, (2, 21)), torch.ones(2, 21, dtype=torch.long)
    mask[1, 15:] = 0
    model.zero_grad()
    hidden = FastDecoder(model, pieces)(ids, mask.nonzero(as_tuple=True), mask)
    hidden.sin().sum().backward()
    return [hidden.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]


@pytest.mark.parametrize("kept", [0, 2**21])
def test_attention_is_that_of_sdpa(monkeypatch, kept):
    monkeypatch.setattr(cpu_kernels, "_KEPT", kept)
    shapes = [(3, heads, 33, 8) for heads in (6, 2, 2)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    query, *others = inputs
    wide = [each.repeat_interleave(3, 1) for each in others]
    expected = scaled_dot_product_attention(query, wide[0], wide[1], is_causal=True, scale=0.3)
    found = causal_attention(inputs[0], inputs[1], inputs[2], 0.3)
    assert torch.allclose(found, expected, atol=1e-12)
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_attention_takes_what_autocast_gives_sdpa(side_by_side):
    """Positions make queries and keys float32 where the embedding is trained in it, and no values."""
    query, key = (torch.randn(1, heads, 9, 8) for heads in (6, 2))
    value, module = torch.randn(1, 2, 9, 8).bfloat16(), torch.nn.Module()
    attend = flat.attend if side_by_side else cpu_kernels.attend
    more = {"cu_seq_lens_q": torch.tensor([0, 9])} if side_by_side else {}
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(module, query, key, value, None, **more)
    wide = (each.bfloat16().repeat_interleave(3, 1) for each in (key, value))
    expected = scaled_dot_product_attention(query.bfloat16(), *wide, is_causal=True).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found, expected, atol=2e-2)


def test_attention_in_bfloat16_is_as_exact_as_sdpas():
    torch.manual_seed(0)
    precise = [torch.randn(2, 4, 64, 32).bfloat16().double().requires_grad_() for _ in range(3)]
    rounded = [each.detach().bfloat16().requires_grad_() for each in precise]
    grad = torch.randn(2, 4, 64, 32).bfloat16()

    def all_of(inputs: list[torch.Tensor], attention: Any) -> list[torch.Tensor]:
        out = attention(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    exact, theirs = all_of(precise, sdpa), all_of(rounded, sdpa)
    ours = all_of(rounded, lambda q, k, v: causal_attention(q, k, v, 32**-0.5))
    for right, one, other in zip(exact, ours, theirs, strict=True):
        assert (one.double() - right).norm() <= 1.25 * (other.double() - right).norm()


@pytest.mark.parametrize("options", [{}, {"lora_bias": True}, {"use_dora": True}, {"lora_dropout": 1e-12}])
def test_a_decoder_has_the_gradients_of_the_librarys_own(options, monkeypatch):
    used = []
    for each in (cpu_kernels._CausalAttention, cpu_kernels._LoraLinear):
        apply = each.apply
        monkeypatch.setattr(
            each, "apply", lambda *args, name=each.__name__, apply=apply: (used.append(name), apply(*args))[1]
        )
    model = lora_model(**options).double()
    plain = hidden_and_gradients(model, Pieces(chunked_loss=True))
    assert not used
    fast = hidden_and_gradients(model, Pieces(chunked_loss=True, cpu_kernels=True))
    assert used.count("_CausalAttention") == 2
    assert used.count("_LoraLinear") == (0 if options else 14)  # others than plain ones stay as they are
    assert len(fast) == len(plain)
    for one, other in zip(fast, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    assert not [layer for layer in model.modules() if "forward" in vars(layer)]


def test_a_model_may_change_in_place_what_a_layer_gives():
    """As OLMo does with clip_qkv."""
    layer = lora_model().double().get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    found = []
    for forwards in (lora_forwards(layer), []):
        layer.zero_grad()
        with replaced(forwards):
            layer(x).clamp_(-0.1, 0.1).sin().sum().backward()
        found.append(layer.lora_A["default"].weight.grad)
    assert torch.allclose(*found, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_model_that_looks_ahead_keeps_its_attention(kind):
    torch.manual_seed(0)
    options: dict[str, Any] = {"is_causal": False} if kind == "llama" else NO_DROPOUT
    config = AutoConfig.for_model(kind, **SIZES, **HEADS, **options)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules="all-linear"))
    found = [
        hidden_and_gradients(model, Pieces(chunked_loss=True, cpu_kernels=fast)) for fast in (True, False)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_layer_that_is_switched_off_is_the_base():
    model = lora_model().double()
    fast = Pieces(chunked_loss=True, cpu_kernels=True)
    with model.disable_adapter():
        for each in model.parameters():
            each.requires_grad_(False)
        ids = torch.randint(99, (1, 9))
        places = torch.ones(1, 9).nonzero(as_tuple=True)
        found = FastDecoder(model, fast)(ids, places)
        expected = FastDecoder(model, Pieces(chunked_loss=True))(ids, places)
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_lora_layer_in_bfloat16_is_as_exact_as_the_librarys():
    """A whole model would amplify the rounding of both to a difference that says nothing."""
    model, precise = lora_model(), lora_model().double()
    for (name, parameter), other in zip(model.named_parameters(), precise.parameters(), strict=True):
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
            other.data = parameter.data.double()
    x, grad = torch.randn(2, 33, 48).bfloat16(), torch.randn(2, 33, 64).bfloat16()
    layer, exact = (each.get_base_model().model.layers[0].mlp.up_proj for each in (model, precise))

    def all_of(layer: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [
            x.to(dtype).requires_grad_(),
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(inputs[0])
        return [out, *torch.autograd.grad(out, inputs, grad.to(dtype))]

    right, theirs = all_of(exact, torch.float64), all_of(layer, torch.bfloat16)
    with replaced(lora_forwards(layer)):
        ours = all_of(layer, torch.bfloat16)
    assert [each.dtype for each in ours] == [each.dtype for each in theirs]
    assert not torch.equal(ours[0], theirs[0])
    for best, one, other in zip(right, ours, theirs, strict=True):
        assert (one - best).norm() <= 1.1 * (other - best).norm()
