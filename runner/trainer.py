"""The library's trainers with two guarantees more: they stop at the first loss that is not finite, and a
checkpoint is complete or not there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from runner.dropout import key_dropout
from runner.errors import Diverged
from runner.labels import IGNORE
from runner.token_loss import TokenScores, scores_by_head, token_scores

# Called at every logged step with what the trainer logs, the step and the seconds since training began.
OnLog = Callable[[dict[str, Any]], None]


class GuardedTrainer(Trainer):
    """What every trainer here adds to the library's, before which it stands among the base classes.

    Raises ``Diverged`` from the first step whose loss or gradient norm is not finite, before the optimizer
    uses it.
    """

    _total_train_tokens: int

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        tokenizer: Any,
        train: Dataset,
        held_out: Dataset | None,
        on_log: OnLog,
        **more: Any,
    ) -> None:
        if getattr(args, "_n_gpu", 1) > 1 and "WORLD_SIZE" not in os.environ:
            args._n_gpu = 1  # TRL refuses DataParallel; one process drives one GPU
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=train,
            eval_dataset=held_out,
            callbacks=[_Report(on_log)],
            **more,
        )
        self.remove_callback(PrinterCallback)
        self._dropout = key_dropout(model, args.seed)
        self._passes = (-1, 0)  # the optimizer step, and forward passes in it so far
        for parameter in model.parameters():
            # TRL casts the adapter of any quantised base to bfloat16, also where the run computes in float32
            if parameter.requires_grad and model.dtype == torch.float32:
                parameter.data = parameter.data.float()

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, without padding."""
        return self.state.num_input_tokens_seen or self._total_train_tokens

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; the loss must be finite."""
        self._count_pass()
        loss = super().training_step(*args, **kwargs)
        self._tr_loss = self._tr_loss.to(loss.dtype)  # the library would add float64 losses up in float32
        if not torch.isfinite(loss):
            raise Diverged(f"the loss of step {self.state.global_step + 1} is {loss.item()}")
        return loss

    def _count_pass(self) -> None:
        """Tell the dropout which forward pass of the run comes next."""
        step = self.state.global_step
        self._passes = (step, self._passes[1] + 1 if self._passes[0] == step else 0)
        if self._dropout is not None:
            self._dropout.at(step * self.args.gradient_accumulation_steps + self._passes[1])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run writes one card, with the adapter."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint aside and rename it, so that a kill leaves a complete one or none."""
        final = Path(str(self.args.output_dir))
        aside = final / ".writing"
        shutil.rmtree(aside, ignore_errors=True)
        self.args.output_dir = str(aside)
        save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.save_total_limit = str(final), save_total_limit
        if not self.args.should_save:
            return
        name = f"checkpoint-{self.state.global_step}"
        if self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).parent == aside:
            self.state.best_model_checkpoint = str(final / name)
            self.state.save_to_json(str(aside / name / "trainer_state.json"))
        shutil.rmtree(final / name, ignore_errors=True)
        (aside / name).rename(final / name)
        shutil.rmtree(aside)
        rotate_checkpoints(
            output_dir=str(final),
            save_total_limit=save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )


class SupervisedTrainer(GuardedTrainer, SFTTrainer):
    """``SFTTrainer`` on rows that are already ``input_ids`` and ``labels``.

    Where the head is a plain frozen one, the loss comes from ``runner.token_loss``, elsewhere from TRL.
    """

    def __init__(self, model: Any, args: SFTConfig, *rows: Any, **more: Any) -> None:
        if not args.packing:
            args.max_length = None  # the rows are cut already; TRL would look at each again
        super().__init__(model, args, *rows, **more)
        if args.packing:
            self.train_dataset = _labelled(self.train_dataset)
            self.eval_dataset = _labelled(self.eval_dataset)
        self._own_loss = (
            args.loss_type == "nll"
            and not args.label_smoothing_factor
            and not (args.packing or args.padding_free)
            and scores_by_head(model)
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the labelled tokens of the batch, or of all batches of the optimizer step."""
        if not self._own_loss or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():
            mask = inputs["attention_mask"]
            scores = token_scores(self.model, inputs["input_ids"], inputs["labels"], attention_mask=mask)
        self._note(scores, int(mask.sum()))
        count = scores.mask.sum() if num_items_in_batch is None else num_items_in_batch
        return -scores.log_probs.sum() / torch.as_tensor(count, device=mask.device).clamp(min=1)

    def _note(self, scores: TokenScores, tokens: int) -> None:
        """Keep the figures that TRL logs with the loss, under its names."""
        mode = "train" if scores.log_probs.requires_grad else "eval"
        count = scores.mask.sum().clamp(min=1)
        self._metrics[mode]["entropy"].append((scores.entropy.sum() / count).item())
        self._metrics[mode]["mean_token_accuracy"].append((scores.is_top1.sum() / count).item())
        self._total_train_tokens += tokens if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _labelled(packed: Any) -> Any:
    """The packed rows without those that train nothing, as the wrapped strategy cuts between two answers:
    their batch would have no loss, which is logged as 0."""
    if packed is None:
        return None
    return packed.filter(lambda row: any(label != IGNORE for label in row["labels"][1:]))


class _Report(TrainerCallback):
    """Hands every logged step on, and stops at a gradient that is not finite."""

    def __init__(self, on_log: OnLog) -> None:
        self._on_log, self._started = on_log, time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        seconds = round(time.monotonic() - self._started, 6)
        self._on_log(
            {"step": state.global_step, **(logs or {}), "seconds": seconds, "max_steps": state.max_steps}
        )
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise Diverged(f"the gradient norm of step {state.global_step} is {norm}")


def all_finite(model: torch.nn.Module) -> bool:
    """Whether every trained weight is finite."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
