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


@pytest.mark.sampled(4)
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
    from runner.plan.expected import Place, Rows, expected
    from runner.plan.packs import cells_in_a_pass
    from runner.speed.pieces import PLAIN

    config = RunConfig.of({"recipe": "sft", "lora": LORA})
    architecture = from_facts(facts("llama"))
    assert architecture is not None

    def of(free: float, most: int | None = None) -> int:
        place, rows = Place(None, round(free)), Rows(8, 125, 125.0)
        step = ("fp32", PLAIN)
        said = expected(config, OBJECTIVES["sft"], architecture, rows, place, step, 1, cells=(6, most))
        assert said is not None
        sizes.append(said.memory)
        return said.cells_per_pass

    sizes: list[Any] = []
    assert (of(0), of(1e12), of(1e12, 2)) == (1, 6, 2)
    one, six, two = sizes
    assert six.parts["activations"] > 5 * one.parts["activations"]
    there = six.parts["base"] + six.parts["adapter"]
    for memory, count in ((six, 6), (two, 2)):  # seven tenths of what is free beside base and adapters
        room = there + (memory.reserved - there) / 0.7
        assert (of(room + 100), of(room - 100)) == (count, count - 1)
    assert cells_in_a_pass(lambda count: one, 6, None, 10**12) == 6
