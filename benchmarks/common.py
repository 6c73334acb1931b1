"""What the comparisons with TRL share: rows of letters, TRL's trainer on them, and the speed of its steps."""

from __future__ import annotations

import json
import random
import statistics
import string
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


def letters(count: int, seed: int) -> str:
    """A text of ``count`` letters, which are as many tokens of a byte-level tokenizer."""
    return "".join(random.Random(seed).choices(string.ascii_lowercase, k=count))


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def logged_steps(run: Path) -> list[float]:
    """Seconds from the begin of training to the end of each step, as a run folder holds them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"] for line in lines if "loss" in line]


def steady_step(ends: Sequence[float], warmup: int) -> float:
    """Seconds of the median step after the first ``warmup`` ones, from the times at which steps ended."""
    steps = [after - before for before, after in pairwise(ends)][max(warmup, 1) - 1 :]
    if not steps:
        raise ValueError(f"{len(ends)} logged steps leave none after {warmup} of warmup")
    return statistics.median(steps)


def compose(overrides: list[str]) -> Any:
    """The run config of overrides, as the command line makes it."""
    from recipes import OBJECTIVES
    from runner.cli import run_config

    (run,) = run_config.check(run_config.parse(overrides, OBJECTIVES)).configs
    return run


def trl_trainer(run: Any, output: Path, rows: Path, held_out: Path | None = None) -> tuple[Any, list[float]]:
    """TRL as its documentation shows it, with the settings of a run config.

    A model, its config, a ``LoraConfig``, rows of text or messages; TRL's own loss, no gradient
    checkpointing. Returns the trainer and the list that gets the seconds at which each step ended.
    """
    from datasets import load_dataset
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from runner.models.build import quantization_config
    from runner.models.model import choose_precision, find_base, load_model

    precision = choose_precision(run)
    base = find_base(run.model)
    files = {"train": str(rows)} | ({"held_out": str(held_out)} if held_out else {})
    data: Any = load_dataset("json", data_files=files)
    kinds = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}
    trainer_class, config_class = kinds[run.recipe]
    clock, ends = _clock()
    trainer = trainer_class(
        model=load_model(base, quantization_config(run, precision), precision.dtype, seed=0),
        processing_class=base.tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["held_out"] if held_out else None,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock()],
        args=config_class(
            output_dir=str(output),
            max_steps=run.trainer["max_steps"],
            per_device_train_batch_size=run.trainer["per_device_train_batch_size"],
            per_device_eval_batch_size=run.trainer["per_device_eval_batch_size"],
            max_length=run.trainer["max_length"],
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
    return trainer, ends


def _clock() -> tuple[Callable[[], Any], list[float]]:
    """A callback that notes when each step ended, and the list in which it does."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:
                ends.append(time.monotonic() - self.began)

    return Clock, ends


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
