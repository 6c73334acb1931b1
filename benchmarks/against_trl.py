"""Speed and memory of the runner's step against TRL's own trainer, same model, rows and settings.

    python benchmarks/against_trl.py --recipe sft --model qwen3-4b --batch 4 --length 512
    python benchmarks/against_trl.py --recipe dpo --model qwen3-4b --batch 4 --length 512

A row of DPO is a pair: two answers of that length, prompt included. Random weights at the true shape, NF4,
LoRA r=16 on all linear layers, no gradient checkpointing. Each side runs in a process of its own; the first
steps (allocation, kernel selection) are left out of the speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import compose, letters, logged_steps, steady_step, trl_trainer, write_rows

WARMUP = 6  # steps left out


def main() -> None:
    """Run both sides and print a line each, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=["sft", "dpo"], default="sft")
    parser.add_argument("--model", default="qwen3-4b")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--side", choices=["trl", "runner"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        result = {"trl": run_trl, "runner": run_runner}[options.side](options)
        (options.folder / f"{options.side}.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", (_row(options, number) for number in range(512)))
        results = {}
        for side in ("trl", "runner"):
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", name], check=True
            )
            results[side] = json.loads((folder / f"{side}.json").read_text())
    for side, result in results.items():
        print(
            f"{side:7} {result['tokens_per_second']:9,.0f} tokens/s   step {result['step_ms']:7.1f} ms   "
            f"peak {result['peak_gib']:6.2f} GiB"
        )
    speed = results["runner"]["tokens_per_second"] / results["trl"]["tokens_per_second"]
    memory = results["runner"]["peak_gib"] / results["trl"]["peak_gib"]
    print(f"runner against TRL: {speed:.2f}x the speed, {memory:.2f}x the memory")


def run_runner(options: argparse.Namespace) -> dict[str, float]:
    """The real command line; step times from ``metrics.jsonl``, peak memory from ``run.json``."""
    run = options.folder / "run"

    if main([*_overrides(options), f"output_dir={run}", 'trainer.save_strategy="no"']):
        raise SystemExit("the runner failed")
    peak = json.loads((run / "run.json").read_text())["metrics"]["peak_memory_bytes"]
    return _result(options, logged_steps(run), peak)


def run_trl(options: argparse.Namespace) -> dict[str, float]:
    """TRL with the same settings."""
    rows = options.folder / "rows.jsonl"
    trainer, ends = trl_trainer(compose(_overrides(options)), options.folder / "trl", rows)
    trainer.train()
    from main.core.environment import peak_memory

    return _result(options, ends, peak_memory())


def _row(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Letters that fill a row; of a pair, half of it is the prompt."""
    if options.recipe == "sft":
        return {"text": letters(options.length, number)}
    half = options.length // 2 - 14  # the template's own tokens take the rest
    sides = {"chosen": "assistant", "rejected": "assistant", "prompt": "user"}
    return {
        key: [{"role": role, "content": letters(half, 3 * number + shift)}]
        for shift, (key, role) in enumerate(sides.items())
    }


def _overrides(options: argparse.Namespace) -> list[str]:
    kind = ["data=text"] if options.recipe == "sft" else ["recipe=dpo", "data=file"]
    return [
        *kind,
        f"data.path={options.folder / 'rows.jsonl'}",
        f"model={options.model}",
        "model.weights=random",
        f"quantization={options.quantization}",
        "lora=r16",
        f"trainer.max_steps={options.steps}",
        f"trainer.per_device_train_batch_size={options.batch}",
        f"trainer.max_length={options.length}",
    ]


def _result(options: argparse.Namespace, ends: list[float], peak: int) -> dict[str, float]:
    step = steady_step(ends, WARMUP)
    tokens = options.batch * options.length * (2 if options.recipe == "dpo" else 1) / step
    return {"tokens_per_second": tokens, "step_ms": step * 1000, "peak_gib": peak / 2**30}


if __name__ == "__main__":
    main()
