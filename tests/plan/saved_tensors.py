"""Tiny models as a run makes them, and what autograd keeps of a forward pass through their decoder."""

import weakref
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from runner.models.fp8 import Fp8Config
from runner.models.keyed_dropout import key_dropout
from runner.plan.built import peft_config
from runner.speed.layers import FastLayers
from runner.speed.pieces import Pieces

SIZES = {
    "hidden_size": 192,
    "intermediate_size": 736,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "pad_token_id": 0,
}
LORA = {"_target_": "peft.LoraConfig", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
QUANTIZED: dict[str, Any] = {
    "nf4": {
        "_target_": "transformers.BitsAndBytesConfig",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "fp4": {
        "_target_": "transformers.BitsAndBytesConfig",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
    },
    "int8": {"_target_": "transformers.BitsAndBytesConfig", "load_in_8bit": True},
    "fp8": {"_target_": "runner.models.fp8.Fp8Config"},
    "": {},
}


def facts(kind: str, **more: Any) -> dict[str, Any]:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim" or not kind.startswith("olmo")}
    return {"model_type": kind, **sizes, "eos_token_id": 1, **more}


def base_model(config: dict[str, Any], dtype: torch.dtype, quantization: dict[str, Any]) -> Any:
    given = dict(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(given.pop("model_type"), **given), dtype=dtype
    )
    if not quantization:
        return model
    fields = {key: value for key, value in quantization.items() if key != "_target_"}
    kind: Any = Fp8Config if "Fp8" in quantization["_target_"] else BitsAndBytesConfig
    if fields.get("load_in_4bit"):
        fields["bnb_4bit_compute_dtype"] = dtype
    return type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=dtype,
        device_map={"": "cpu"},
        quantization_config=kind(**fields),
    )


def trainable(model: Any, lora: dict[str, Any], quantized: bool) -> Any:
    """The model with its adapter, in the number formats that TRL and the runner give it."""
    if not lora:
        return model.train()
    wrapped = get_peft_model(model, peft_config(lora, None))
    for parameter in wrapped.parameters():
        if quantized and parameter.requires_grad and model.dtype != torch.float32:
            parameter.data = parameter.data.bfloat16()
    key_dropout(wrapped, 0)
    return wrapped.train()


def saved_bytes(
    model: Any,
    rows: int,
    length: int,
    autocast: bool,
    compiled: bool = False,
    budget: float = 1.0,
    cpu_kernels: bool = False,
) -> int:
    """Bytes of all storages that autograd keeps of a forward pass through the decoder, the model's own left
    out. Layers are compiled as in a run, or as the library computes them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    own |= set(_quantization_states(model))
    kept: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor)
        kept.add(saved)
        return saved

    pieces = Pieces(
        compile=compiled, cuda_graphs=compiled, cpu_kernels=cpu_kernels, activation_memory_budget=budget
    )
    ids = torch.randint(1, inner.config.vocab_size, (rows, length))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        FastLayers(model, pieces).on(True),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor),
    ):
        result = inner.base_model(input_ids=ids, use_cache=False)
    storages = {each.tensor.untyped_storage().data_ptr(): each.tensor.untyped_storage() for each in kept}
    found = sum(storage.nbytes() for place, storage in storages.items() if place not in own)
    del result  # whose graph holds them
    return found


class _Saved:
    """A tensor that autograd holds, as long as it does: some graphs are dropped in the forward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _quantization_states(model: Any) -> list[int]:
    tensors = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [getattr(each, name, None) for name in ("absmax", "code", "offset")] if each else []
    return [each.untyped_storage().data_ptr() for each in tensors if each is not None]
