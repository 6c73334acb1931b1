"""What stays on the device is, to the byte, what a tiny model's tensors take."""

from collections.abc import Iterable
from typing import Any

import bitsandbytes
import pytest
import torch
from saved_tensors import LORA, QUANTIZED, base_model, facts, trainable
from transformers import Adafactor

from runner.models.fp8 import support
from runner.plan.families import from_facts
from runner.plan.trained import trained
from runner.plan.weights import base_bytes, optimizer_bytes


def _bytes(tensors: Iterable[Any]) -> int:
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors if each is not None
    }
    return sum(storage.nbytes() for storage in storages.values())


def _of_base(model: Any) -> int:
    tensors: list[Any] = []
    for parameter in model.parameters():
        tensors += [parameter.data, getattr(parameter, "SCB", None)]
        state = getattr(parameter, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [each.absmax, each.code, getattr(each, "offset", None)] if each else []
    scales = [
        each for name, each in model.named_buffers() if name.endswith(("weight_scale", "weight_transposed"))
    ]
    return _bytes([*tensors, *scales])


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "unsupported", lambda: None)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("quantization", "more"),
    [
        ("", {}),
        ("nf4", {}),
        ("nf4", {"llm_int8_skip_modules": ["lm_head", "down_proj"]}),
        ("fp4", {}),
        ("int8", {}),
        ("fp8", {}),
        ("fp8", {"transposed_copy": True}),
        ("fp8", {"modules_to_not_convert": ["lm_head", "q_proj"]}),
    ],
)
def test_base(quantization: str, more: dict[str, Any], tied: bool) -> None:
    config = facts("qwen2", tie_word_embeddings=tied)
    architecture = from_facts(config)
    assert architecture is not None
    settings = QUANTIZED[quantization] | more
    model = base_model(config, torch.bfloat16, settings)
    assert base_bytes(architecture, settings, quantization, 2) == _of_base(model)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"rank_pattern": {"q_proj": 4}, "target_modules": ["q_proj", "down_proj"]},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"]},
    {"bias": "all"},
]


@pytest.mark.parametrize("more", OPTIONS)
def test_adapter_and_gradients(more: dict[str, Any]) -> None:
    config = facts("qwen2")
    architecture = from_facts(config)
    assert architecture is not None
    model = trainable(base_model(config, torch.float32, {}), LORA | more, False)
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    found = trained(architecture, LORA | more)
    tensors = [each for each in model.parameters() if each.requires_grad]
    assert 4 * found.parameters == _bytes(tensors) == _bytes([each.grad for each in tensors])


SHAPES = [(16, 192), (736, 16), (300, 96), (64,), (4096, 2)]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw_torch_fused", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
        ("adagrad", torch.optim.Adagrad),
        ("adafactor", lambda parameters: Adafactor(parameters, relative_step=False, lr=1e-3)),
        ("adamw_8bit", bitsandbytes.optim.AdamW8bit),
        ("paged_adamw_32bit", bitsandbytes.optim.AdamW32bit),
        ("lion_8bit", bitsandbytes.optim.Lion8bit),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_the_optimizer(name: str, make: Any, dtype: torch.dtype) -> None:
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    optimizer = make(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    states = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
        and key not in ("step", "RMS", "qmap1", "qmap2")  # shared, or one number
    ]
    assert optimizer_bytes(name, SHAPES, dtype.itemsize) == _bytes(states)


def test_a_pack_is_sized_by_the_same_function() -> None:
    """Of free memory each cell of a pass takes its tokens' activations, whatever else there is."""
    from recipes import OBJECTIVES
    from runner.config.settings import RunConfig
    from runner.packed import memory as packed_memory
    from runner.plan.packs import pack_memory
    from runner.speed.pieces import PLAIN

    config = RunConfig.of({"recipe": "sft", "lora": LORA})
    model = base_model(facts("llama"), torch.float32, {})
    said = pack_memory(config, OBJECTIVES["sft"], model, PLAIN, "fp32", 6, 1000, False)
    one, three = (said(count).parts["activations"] for count in (1, 3))
    moving = said(3).total - said(3).parts["base"] - said(3).parts["adapter"]
    assert three > 2.5 * one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_memory, "free_bytes", lambda _: moving / 0.7 + 1)
        assert packed_memory.estimate_cells_per_pass(said, model, 6, None) == (3, said(3).total)
        assert packed_memory.estimate_cells_per_pass(said, model, 6, 2)[0] == 2
        patch.setattr(packed_memory, "free_bytes", lambda _: 0)
        assert packed_memory.estimate_cells_per_pass(said, model, 6, None)[0] == 1
