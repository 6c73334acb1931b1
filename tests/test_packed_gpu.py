"""In bfloat16 a packed cell is no further from its solo run than two solo runs of different batch layout."""

from __future__ import annotations

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file
from test_packed_equality import run_pack

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

BASE = (
    "model=qwen3-0.6b",
    "model.weights=random",
    "lora=r16",
    "data.max_rows=64",
    "data.eval_max_rows=8",
    "trainer.max_steps=8",
    "trainer.per_device_train_batch_size=4",
    "generation.samples=0",
    "data.metric=null",
)
GRID = [("lora.r=8", "trainer.learning_rate=1e-4"), ("lora.r=16", "trainer.learning_rate=3e-4")]
OTHER_LAYOUT = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2")


def distances(one: Run, other: Run) -> tuple[float, float]:
    """Mean difference of the losses by step, and mean relative distance of the trained B of each layer."""
    losses = [[line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line] for run in (one, other)]
    gap = sum(abs(a - b) for a, b in zip(*losses, strict=True)) / len(losses[0])
    first, second = (load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (one, other))
    names = [name for name in first if "lora_B" in name]
    far = [float((first[n].float() - second[n].float()).norm() / second[n].float().norm()) for n in names]
    return gap, sum(far) / len(far)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_distance_to_solo(cli, tmp_path, monkeypatch, quantization, capsys):
    base = (*BASE, f"quantization={quantization}")
    packs = {"compiled": run_pack(tmp_path / "compiled", base, GRID)}
    monkeypatch.setattr("runner.packed.compiled._decoder_layers", lambda model: [])
    packs["eager"] = run_pack(tmp_path / "eager", base, GRID)
    found: dict[str, list[tuple[float, float]]] = {"compiled": [], "eager": [], "layout": []}
    for number, overrides in enumerate(GRID):
        solo = cli(*base, *overrides, folder=f"solo{number}")
        layout = cli(*base, *overrides, *OTHER_LAYOUT, folder=f"layout{number}")
        for name, pack in packs.items():
            found[name].append(distances(pack[number], solo))
        found["layout"].append(distances(layout, solo))
    means = {
        name: [sum(column) / len(GRID) for column in zip(*cells, strict=True)]
        for name, cells in found.items()
    }
    with capsys.disabled():
        for name, (loss, weights) in means.items():
            print(f"\n{quantization}: {name} to solo, loss {loss:.2e}, B {weights:.4f}", end="")
    for name in packs:
        assert means[name][1] <= means["layout"][1]
