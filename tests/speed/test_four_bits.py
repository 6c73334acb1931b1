"""4-bit layers of a training step: our kernel gives the numbers of bitsandbytes, whose place it takes."""

import sys
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from helpers.tiny_model import TINY_MODEL
from runner.models.model import find_base, load_model
from runner.speed.layers import FastLayers
from runner.speed.pieces import Pieces

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_those_of_bitsandbytes(dtype, kind, nested, storage):
    from runner.speed.four_bit_kernel import dequantize

    torch.manual_seed(0)
    for rows, columns, block in ((64, 192, 64), (1000, 512, 64), (6144, 2048, 64), (128, 1024, 256)):
        weight = (torch.randn(rows, columns, device="cuda") * 0.02).to(dtype)
        packed, state = quantize_4bit(weight, None, None, block, nested, kind, storage)
        inner = state.state2
        more = (inner.code, inner.absmax, state.offset) if nested else (None, None, None)
        found = dequantize(packed, state.absmax, *more, state.code, rows, columns, block, dtype)
        assert torch.equal(found, dequantize_4bit(packed, state))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_outputs_and_gradients_are_those_of_bitsandbytes(monkeypatch, compiled):
    from runner.speed import four_bits

    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(512, 384, compute_dtype=torch.bfloat16, quant_type="nf4").to("cuda")
    layer.requires_grad_(False)
    x = torch.randn(8, 256, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def passes(call):
        x.grad = None
        out = call(x)
        out.float().square().sum().backward()
        return out.detach(), x.grad

    expected = passes(layer)
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", four_bits.matmul_4bit)
    monkeypatch.setattr(four_bits, "_MATMUL", None)  # which is not called
    found = passes(torch.compile(layer) if compiled else layer)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("missing", "ours"),
    [
        ("", True),
        ("quantized", False),
        ("compiled", False),
        ("training", False),
        ("whole", False),
        ("triton", False),
    ],
)
def test_it_takes_their_place_in_compiled_training_steps(monkeypatch, missing, ours):
    def kernel(*_, **__):
        raise AssertionError("nothing is computed here")

    monkeypatch.setitem(sys.modules, "runner.speed.four_bits", SimpleNamespace(matmul_4bit=kernel))
    monkeypatch.setattr("runner.speed.layers.find_spec", lambda name: None if missing == name else object())
    monkeypatch.setattr(
        FastLayers, "_compile", lambda self: self._compiled.extend(layer.forward for layer in self.layers)
    )
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4") if missing != "quantized" else None
    )
    base = load_model(find_base(TINY_MODEL), config, torch.bfloat16, seed=0)
    model = get_peft_model(base, LoraConfig(target_modules="all-linear"))
    if missing == "whole":
        model.in_parts = True
    library = bitsandbytes.matmul_4bit
    with FastLayers(model, Pieces(compile=missing != "compiled")).on(missing != "training"):
        assert bitsandbytes.matmul_4bit is (kernel if ours else library)
    assert bitsandbytes.matmul_4bit is library
