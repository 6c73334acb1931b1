"""What autograd keeps of a tiny model's forward pass is what the formulas say, to within a tenth."""

from typing import Any

import pytest
import torch
from saved_tensors import LORA, QUANTIZED, base_model, facts, saved_bytes, trainable

from runner.models.fp8 import support
from runner.plan import activations
from runner.plan.activations import kept
from runner.plan.families import from_facts
from runner.plan.step import Step
from runner.plan.trained import trained
from runner.speed import cpu_kernels
from runner.speed.pieces import Pieces

ROWS, LENGTH = 2, 256


def ratio(
    kind: str,
    quantization: str,
    lora: dict[str, Any],
    precision: str = "bf16",
    compiled: bool = False,
    budget: float = 1.0,
    checkpointing: bool = False,
    cpu_kernels: bool = False,
    length: int = LENGTH,
    **more: Any,
) -> float:
    """Predicted over kept bytes."""
    config = facts(kind, **more)
    architecture = from_facts(config)
    assert architecture is not None
    dtype = torch.bfloat16 if lora and precision == "bf16" else torch.float32
    width = dtype.itemsize
    autocast = precision == "bf16" and not (quantization and width == 2)
    model = trainable(base_model(config, dtype, QUANTIZED[quantization]), lora, bool(quantization))
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.compiler.reset()
    found = saved_bytes(model, ROWS, length, autocast, compiled, budget, cpu_kernels)
    step = Step(
        precision=precision,
        weight=width,
        product=4 if precision == "fp32" else 2,
        trained=width if width == 4 or quantization else 4,
        copied=4,
        quantization=quantization,
        pieces=Pieces(compile=compiled, activation_memory_budget=budget, cpu_kernels=cpu_kernels),
        checkpointing=checkpointing,
    )
    said = kept(architecture, trained(architecture, lora), step, length=length)
    return (said.token * ROWS * length + said.fixed) / found


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "unsupported", lambda: None)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("quantization", ["", "nf4"])
@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "olmo", "olmo2", "glm"]
)
def test_eager_layers(kind: str, quantization: str) -> None:
    assert ratio(kind, quantization, LORA) == pytest.approx(1, abs=0.05)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("quantization", "more"),
    [
        ("", {"lora_dropout": 0.1}),
        ("nf4", {"lora_dropout": 0.1}),
        ("", {"use_dora": True}),
        ("nf4", {"use_dora": True}),
        ("nf4", {"target_modules": ["q_proj", "v_proj"]}),
        ("int8", {}),
        ("fp8", {}),
        ("fp4", {"rank_pattern": {"q_proj": 64}}),
    ],
)
def test_eager_adapters(quantization: str, more: dict[str, Any]) -> None:
    assert ratio("llama", quantization, LORA | more) == pytest.approx(1, abs=0.05)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("length", "precision"), [(128, "bf16"), (128, "fp32"), (512, "bf16")])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_kernels_for_a_cpu(kind: str, precision: str, length: int) -> None:
    assert ratio(kind, "", LORA, precision, cpu_kernels=True, length=length) == pytest.approx(1, abs=0.06)


def test_kernels_for_a_cpu_keep_up_to_the_same_length() -> None:
    assert (activations.BY_PRODUCTS, activations.SHARES_KEPT) == (cpu_kernels._LONGEST, cpu_kernels._KEPT)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_every_weight(kind: str, precision: str) -> None:
    assert ratio(kind, "", {}, precision) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("quantization", ["", "nf4"])
def test_gradient_checkpointing(quantization: str) -> None:
    assert ratio("llama", quantization, LORA, checkpointing=True) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_compiled_layer() -> None:
    assert ratio("llama", "", LORA, compiled=True) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quantization", "more"),
    [
        ("qwen3", "nf4", {}),
        ("qwen3", "", {}),
        ("gemma3_text", "nf4", {}),
        ("phi3", "", {}),
        ("gemma", "nf4", {}),
        ("phi3", "nf4", {}),
        ("olmo2", "nf4", {}),
        ("llama", "fp8", {}),
        ("llama", "nf4", {"lora_dropout": 0.1}),
        ("llama", "nf4", {"target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_compiled_layers(kind: str, quantization: str, more: dict[str, Any]) -> None:
    assert ratio(kind, quantization, LORA | more, compiled=True) == pytest.approx(1, abs=0.06)


@pytest.mark.slow
def test_compiled_layers_of_which_every_weight_is_trained() -> None:
    assert ratio("qwen3", "", {}, compiled=True) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.0, 0.1, 0.3, 0.5, 0.8])
def test_a_budget(budget: float) -> None:
    # whole tensors are kept, of these few layers up to a sixth less than the budget allows
    found = ratio("qwen3", "nf4", LORA, compiled=True, budget=budget)
    assert 0.95 < found < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.5, 0.9])
def test_a_budget_where_inputs_of_adapters_are_cast(budget: float) -> None:
    assert 0.95 < ratio("qwen3", "", LORA, compiled=True, budget=budget) < 1.2
