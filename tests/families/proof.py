"""A tiny random model of a family put through every method, in this process, and what came of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.command import Run, one
from helpers.merges import logits
from helpers.packs import run_pack
from helpers.tiny_model import config_of, using
from runner.models.base import byte_tokenizer
from runner.models.lora_targets import PAST, weights_of
from runner.sweep.cells import Cell
from runner.sweep.check_models import check_models
from runner.sweep.packable import reasons_alone

TESTED = "tested"
# Two steps on short rows that teach something, everything else left out.
WORDS = (
    "trainer.precision=fp32",
    "trainer.max_steps=2",
    "trainer.max_length=256",
    "trainer.per_device_train_batch_size=2",
    "trainer.learning_rate=2e-2",
    "trainer.warmup_steps=0",
    "trainer.save_strategy=no",
    "trainer.logging_steps=1",
    "data.max_rows=4",
    "data.eval_max_rows=2",
    "data.metric=null",
    "generation.samples=0",
    "lora.lora_dropout=0",
)


@dataclass
class Proof:
    """The methods of one family, each a function that returns its outcome: ``tested``, or the word that says
    what the runner does instead, with its reason."""

    kind: str
    folder: Path
    run: Callable[..., Run]
    said: Callable[[], str]
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        config = config_of(self.kind)
        config.get_text_config().initializer_range = 0.1  # large enough that wrong weights show in the logits
        AutoModelForCausalLM.from_config(config).save_pretrained(self.folder / "model")
        byte_tokenizer().save_pretrained(self.folder / "model")
        self.words = (*using(self.folder / "model"), *WORDS)

    def outcomes(self) -> dict[str, str]:
        """What comes of each method, of the first alone where that is refused."""
        lora = self.lora()
        if not lora.startswith(TESTED):
            return {"LoRA": lora}
        return {
            "LoRA": lora,
            "QLoRA NF4": self.trains("nf4", "quantization=nf4"),
            "DPO": self.trains("dpo", "recipe=dpo", "data=orders-pairs", "trainer.max_length=1024"),
            "rows side by side": self.side_by_side(),
            "packing": self.packing(),
            "pack": self.pack(),
            "merge": TESTED,  # by both exports
            "GGUF": self.merge("gguf"),
            "int4": self.merge("int4"),
        }

    def base(self) -> Any:
        """The family's model, anew."""
        return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)

    def lora(self) -> str:
        """Train every matrix that an adapter is for; plain PEFT loads what the run has left."""
        weights = weights_of(self.base())
        past = {name.rpartition(".")[2]: why for name, why in weights.left.items() if why.endswith(PAST)}
        every = () if past else ("lora.require_all=true",)
        if past:
            assert self.run(*self.words, "lora.require_all=true", folder="all").code == 2
        with self._kept_logits() as before:
            code = self.run(*self.words, *every, folder="lora").code
        if code == 2:
            return self.refused()
        assert code == 0
        record = Run(code, self.folder / "lora").record["adapted"]
        assert sum(record["modules"].values()) == len(weights.linear) + len(weights.experts)
        self.every_adapter_learns("lora")
        after = logits(PeftModel.from_pretrained(self.base(), self.folder / "lora" / "adapter"))
        torch.testing.assert_close(after, before[0], atol=1e-5, rtol=1e-4)
        assert (after - logits(self.base())).abs().max() > 1e-3
        return f"{TESTED}: all but {' '.join(past)}: {next(iter(past.values()))}" if past else TESTED

    def trains(self, folder: str, *words: str) -> str:
        """Train with other words; all adapters learn."""
        run = self.run(*self.words, *words, folder=folder)
        if run.code == 2:
            return self.refused()
        assert run.code == 0
        self.every_adapter_learns(folder)
        return TESTED

    def every_adapter_learns(self, folder: str) -> None:
        """Each B, which is drawn as zeros, is not any more."""
        tensors = load_file(self.folder / folder / "adapter" / "adapter_model.safetensors")
        untrained = [name for name, value in tensors.items() if "lora_B" in name and not value.any()]
        assert untrained == []

    def side_by_side(self) -> str:
        """Whether the run of ``lora`` may have rows in one line; its losses are compared in tests/speed."""
        off = Run(0, self.folder / "lora").record["speed"]["off"]
        return f"padded: {off['padding_free']}" if "padding_free" in off else TESTED

    def packing(self) -> str:
        """Rows in one line by TRL have the losses of padded ones."""
        run = self.run(*self.words, "trainer.packing=true", "trainer.max_length=2048", folder="packing")
        if run.code == 2:
            return self.refused()
        packed = run.lines("metrics.jsonl")[0]
        padded = self.run(
            *self.words, "trainer.per_device_train_batch_size=4", "trainer.max_length=2048", folder="padded"
        ).lines("metrics.jsonl")[0]
        assert packed["num_tokens"] == padded["num_tokens"]
        assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-4)
        return TESTED

    def pack(self) -> str:
        """Cells of a pack end as alone, the first as the run of ``lora``."""
        cells = [(), ("lora.r=4",)]
        config = one(*self.words)
        alone = next(reasons_alone(config), None) or check_models([Cell("a", "a", "a", [], config)]).get("a")
        if alone:
            return f"alone: {alone}"
        packed = run_pack(self.folder / "cells", self.words, cells)[0]
        ours, theirs = (
            load_file(folder / "adapter" / "adapter_model.safetensors")
            for folder in (packed.folder, self.folder / "lora")
        )
        assert ours.keys() == theirs.keys()
        distances = [float((ours[key] - each).norm() / each.norm()) for key, each in theirs.items()]
        assert max(distances) < 1e-2
        assert sorted(distances)[len(distances) // 2] < 1e-4
        losses = [
            [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line]
            for run in (packed, Run(0, self.folder / "lora"))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        return TESTED

    def merge(self, form: str) -> str:
        """Merge with its verdict and export, which compares the result; or without where it is refused."""
        words = ("recipe=merge", "adapter=lora", "merge.prompts=2")
        run = self.run(*words, f"export={form}", folder=form)
        outcome = TESTED
        if run.code == 2:
            outcome = self.refused()
            run = self.run(*words, folder=form)
        assert run.code == 0
        metrics = run.record["metrics"]
        assert metrics["merge_greedy_agreement"] == 1
        assert math.isfinite(metrics["merge_kl"])
        expected = logits(PeftModel.from_pretrained(self.base(), self.folder / "lora" / "adapter"))
        model = AutoModelForCausalLM.from_pretrained(run.folder / "model", dtype=torch.float32)
        torch.testing.assert_close(logits(model), expected, atol=1e-3, rtol=1e-3)
        return outcome

    def refused(self) -> str:
        """The first reason of the last command, which was refused before anything was loaded."""
        lines = self.said().splitlines()
        first = max(number for number, line in enumerate(lines) if "config error" in line) + 1
        return f"refused: {lines[first].strip()}"

    @contextmanager
    def _kept_logits(self) -> Iterator[list[torch.Tensor]]:
        """Those of the trained model, before its run saves it."""
        import recipes.train as module

        found, save = [], module.save_trained

        def keep(config: Any, setup: Any, trained: Any, *rest: Any) -> Path:
            found.append(logits(trained.model))
            return save(config, setup, trained, *rest)

        with self.monkeypatch.context() as patched:
            patched.setattr(module, "save_trained", keep)
            yield found
