"""In bfloat16 a packed cell is as far from its solo run as solo runs of different batch layout are apart."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.command import Run
from helpers.packs import run_pack
from runner.speed.layers import ROUNDED

BASE = (
    "data.max_rows=64",
    "data.eval_max_rows=8",
    "trainer.max_steps=8",
    "trainer.per_device_train_batch_size=4",
    "generation.samples=0",
    "data.metric=null",
)
GRID = [("lora.r=8", "trainer.learning_rate=1e-4"), ("lora.r=16", "trainer.learning_rate=3e-4")]
# What two distances of one kind differ by: the order of a sum is all that differs, in the products of layouts
# and of packs, and in compiled norms too.
ALIKE = 1.1
LAYOUTS = [(4, 1), (2, 2), (1, 4)]  # rows a batch, batches a step; the first is that of the pack


def distances(one: Run, other: Run) -> tuple[float, float]:
    """Mean difference of the losses by step, and mean relative distance of the trained B of each layer."""
    losses = [[line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line] for run in (one, other)]
    gap = sum(abs(a - b) for a, b in zip(*losses, strict=True)) / len(losses[0])
    first, second = (load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (one, other))
    names = [name for name in first if "lora_B" in name]
    far = [float((first[n].float() - second[n].float()).norm() / second[n].float().norm()) for n in names]
    return gap, sum(far) / len(far)


def compare(cli, tmp_path, base) -> dict[str, float]:
    """Mean distances over the cells: of the pack, with and without pieces of ``speed``, and of two layouts of
    the solo run."""
    packs = {
        "fast": run_pack(tmp_path / "fast", base, GRID),
        "eager": run_pack(
            tmp_path / "eager", (*base, "speed.compile=false", "speed.cuda_graphs=false"), GRID
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for number, overrides in enumerate(GRID):
        runs = {}
        for rows, batches in LAYOUTS:
            layout = (
                f"trainer.per_device_train_batch_size={rows}",
                f"trainer.gradient_accumulation_steps={batches}",
            )
            runs[f"{rows}x{batches}"] = cli(*base, *overrides, *layout, folder=f"{number}-{rows}")
        for name, pack in packs.items():
            found.setdefault(f"{name} to solo", []).append(distances(pack[number], runs["4x1"]))
        for one, other in itertools.combinations(runs, 2):
            found.setdefault(f"{one} to {other}", []).append(distances(runs[one], runs[other]))
    for name, cells in found.items():
        loss, weights = (sum(column) / len(GRID) for column in zip(*cells, strict=True))
        print(f"{base[-1]}, {name}: loss {loss:.2e}, B {weights:.5f}")
    return {name: sum(cell[1] for cell in cells) / len(GRID) for name, cells in found.items()}


def assert_alike(means: dict[str, float]) -> None:
    most = max(value for name, value in means.items() if "solo" not in name)
    assert means["fast to solo"] <= ALIKE * most
    assert means["eager to solo"] <= ALIKE * most


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="needs a C compiler")
def test_compiled_layers_round_as_others_do():
    """Output and gradient to the bit."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=99, **sizes)).to(torch.bfloat16)
    ids = torch.randint(99, (2, 40))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before = gradients()
    for layer in model.model.layers:
        layer.compile(options=ROUNDED)
    after = gradients()
    assert len(before) == 21
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_distance_to_solo_on_cuda(cli, tmp_path, quantization):
    base = ("model=qwen3-0.6b", "model.weights=random", "lora=r16", *BASE, f"quantization={quantization}")
    assert_alike(compare(cli, tmp_path, base))


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_distance_to_solo_on_a_cpu(cli, tmp_path, quantization):
    base = ("model=tiny", "trainer.precision=bf16", *BASE, f"quantization={quantization}")
    assert_alike(compare(cli, tmp_path, base))
