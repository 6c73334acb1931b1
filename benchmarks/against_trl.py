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
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

WARMUP = 5  # steps left out


def main() -> None:
    """Run both sides and print a line each, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
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
        rows = (json.dumps(_row(options, number)) + "\n" for number in range(512))
        (folder / "rows.jsonl").write_text("".join(rows))
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
    overrides = [
        *_shared(options),
        f"output_dir={run}",
        *_data(options),
        f"trainer.max_steps={options.steps}",
        f"trainer.per_device_train_batch_size={options.batch}",
        f"trainer.max_length={options.length}",
        'trainer.save_strategy="no"',
    ]
    from runner.__main__ import main as runner

    if runner(overrides):
        raise SystemExit("the runner failed")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = [line["seconds"] for line in lines if "loss" in line]
    peak = json.loads((run / "run.json").read_text())["metrics"]["peak_memory_bytes"]
    return _result(options, ends, peak)


def run_trl(options: argparse.Namespace) -> dict[str, float]:
    """TRL as its documentation shows it: a model, its config, a ``LoraConfig``, rows of text or messages."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from runner import config
    from runner.components import quantization_config
    from runner.environment import peak_memory
    from runner.model import choose_precision, find_base, load_model

    (run,) = config.check(config.parse([*_shared(options), *_data(options)]))
    precision = choose_precision(run)
    base = find_base(run.model)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:
                ends.append(time.monotonic() - self.began)

    trainer_class, config_class = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[
        options.recipe
    ]
    trainer = trainer_class(
        model=load_model(base, quantization_config(run, precision), precision.dtype, seed=0),
        processing_class=base.tokenizer,
        train_dataset=load_dataset("json", data_files=str(options.folder / "rows.jsonl"), split="train"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
        args=config_class(
            output_dir=str(options.folder / "trl"),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            max_length=options.length,
            learning_rate=run.trainer["learning_rate"],
            optim="adamw_torch_fused",
            bf16=precision.name == "bf16",
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not _cuda(),
        ),
    )
    trainer.train()
    return _result(options, ends, peak_memory())


def _row(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Letters that fill a row; of a pair, half of it is the prompt."""

    def letters(count: int, shift: int) -> str:
        return "".join(chr(97 + (number * 7 + shift + j * j) % 26) for j in range(count))

    if options.recipe == "sft":
        return {"text": letters(options.length, 0)}
    half = options.length // 2 - 14  # the template's own tokens take the rest
    sides = {"chosen": "assistant", "rejected": "assistant", "prompt": "user"}
    return {
        key: [{"role": role, "content": letters(half, shift)}]
        for shift, (key, role) in enumerate(sides.items())
    }


def _data(options: argparse.Namespace) -> list[str]:
    """How the runner reads the rows."""
    kind = ["data=text"] if options.recipe == "sft" else ["recipe=dpo", "data=file"]
    return [*kind, f"data.path={options.folder / 'rows.jsonl'}"]


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _shared(options: argparse.Namespace) -> list[str]:
    return [
        f"model={options.model}",
        "model.weights=random",
        f"quantization={options.quantization}",
        "lora=r16",
    ]


def _result(options: argparse.Namespace, ends: list[float], peak: int) -> dict[str, float]:
    steps = [after - before for before, after in pairwise(ends)][WARMUP:]
    step = statistics.median(steps)
    tokens = options.batch * options.length * (2 if options.recipe == "dpo" else 1) / step
    return {"tokens_per_second": tokens, "step_ms": step * 1000, "peak_gib": peak / 2**30}


if __name__ == "__main__":
    main()
