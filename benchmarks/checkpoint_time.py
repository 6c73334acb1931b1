"""What a checkpoint costs, and how much of it is its manifest: digests, their flush and the rename.

    python benchmarks/checkpoint_time.py --folder /path/on/the/disk

The tensors of a LoRA adapter (r=16, all linear layers) of Qwen3-4B and its AdamW state, written as a run
writes them; each repetition with the manifest and without, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from runner.core.atomic import flush_to_disk
from runner.core.paths import ARCHITECTURES
from runner.runs import checkpoint


def tensors(rank: int) -> dict[str, torch.Tensor]:
    """A and B of every linear layer of Qwen3-4B, in float32."""
    config = json.loads((ARCHITECTURES / "qwen3-4b.json").read_text())
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = [(hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    found = {}
    for layer in range(config["num_hidden_layers"]):
        for number, (into, out) in enumerate(shapes):
            found[f"{layer}.{number}.A"] = torch.randn(rank, into)
            found[f"{layer}.{number}.B"] = torch.randn(out, rank)
    return found


def write(folder: Path, adapter: dict[str, torch.Tensor]) -> None:
    """The two large files of a checkpoint."""
    folder.mkdir(parents=True)
    save_file(adapter, folder / "adapter_model.safetensors")
    state = {n: {"exp_avg": t, "exp_avg_sq": t} for n, t in enumerate(adapter.values())}
    torch.save({"state": state}, folder / "optimizer.pt")


def without_manifest(folder: Path, name: str, adapter: dict[str, torch.Tensor]) -> None:
    """As the runner writes it, flushed and renamed, but without digests."""
    temporary = folder / ".plain"
    write(temporary / name, adapter)
    for file in (temporary / name).iterdir():
        flush_to_disk(file)
    (temporary / name).rename(folder / name)
    flush_to_disk(folder)


def with_manifest(folder: Path, name: str, adapter: dict[str, torch.Tensor]) -> None:
    """As the runner writes it."""
    with checkpoint.writing(folder, name, dict) as temporary:
        write(temporary / name, adapter)


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    adapter = tensors(16)
    size = 3 * sum(tensor.numel() * 4 for tensor in adapter.values())
    times: dict[str, list[float]] = {"without": [], "with": [], "verify": []}
    for number in range(options.repetitions):
        for name, save in (("without", without_manifest), ("with", with_manifest)):
            with tempfile.TemporaryDirectory(dir=options.folder) as place:
                began = time.monotonic()
                save(Path(place), f"checkpoint-{number + 1}", adapter)
                times[name].append(time.monotonic() - began)
                if name == "with":
                    began = time.monotonic()
                    assert checkpoint.verify(Path(place) / f"checkpoint-{number + 1}") is None
                    times["verify"].append(time.monotonic() - began)
    middle = {name: statistics.median(found) for name, found in times.items()}
    share = middle["with"] / middle["without"] - 1
    print(
        f"{size / 2**20:,.0f} MiB: {middle['without']:.3f} s without a manifest, {middle['with']:.3f} s with"
    )
    print(f"the manifest adds {share:+.1%}; to verify it takes {middle['verify']:.3f} s")


if __name__ == "__main__":
    main()
