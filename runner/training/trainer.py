"""The library's trainers with three guarantees more: they stop at the first loss or gradient that is not
finite, a checkpoint is complete or not there, and a signal ends them between two steps with a checkpoint."""

from __future__ import annotations

import os
import time
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

from runner.core import signals
from runner.core.errors import Diverged, RunnerError
from runner.core.signals import Preempted
from runner.models.keyed_dropout import key_dropout
from runner.runs import checkpoint
from runner.training.context import OnLog, TrainerContext
from runner.training.out_of_memory import free_memory, is_out_of_memory

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class GuardedTrainer(Trainer):
    """What our trainers add to TRL's and transformers', before which this stands among the base classes.

    ``datasets`` are the tokenised training examples and the held-out ones, if there are any. Raises
    ``Diverged`` from the first step whose loss or gradient norm is not finite, before the optimizer uses it,
    and ``Preempted`` from the step in which a signal came, behind its checkpoint.
    """

    _total_train_tokens: int = 0
    _metrics: dict[str, Any]

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        tokenizer: Any,
        datasets: tuple[Dataset, Dataset | None],
        context: TrainerContext,
        **more: Any,
    ) -> None:
        if getattr(args, "_n_gpu", 1) > 1 and "WORLD_SIZE" not in os.environ:
            args._n_gpu = 1  # TRL raises on DataParallel; one process drives one GPU
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            callbacks=[_Report(context.on_log), _Begin(self)],
            **more,
        )
        self._context = context
        self.resumed_totals: dict[str, Any] | None = None
        self.resumed_tokens = 0
        self.remove_callback(PrinterCallback)
        self._dropout = key_dropout(model, args.seed)
        self._passes = (-1, 0)  # the optimizer step, and forward passes in it so far
        self._before_step: tuple[int, torch.Tensor, dict[str, list[Any]]] = (0, torch.zeros(()), {})
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
        if self._passes[1] == 0:
            metrics = {name: list(found) for name, found in self._train_metrics().items()}
            self._before_step = self._total_train_tokens, self._tr_loss.clone(), metrics
        if self._dropout is not None:
            self._dropout.at(step * self.args.gradient_accumulation_steps + self._passes[1])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run writes one card, with the adapter."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a signal is answered between two steps."""
        start = kwargs.get("resume_from_checkpoint")
        self.resumed_totals = checkpoint.facts(Path(start)).get("totals") if start else None
        with signals.defer_signals():
            result = super().train(*args, **kwargs)
        return result._replace(training_loss=self._mean_loss())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the library does it, but the mean loss is that of all steps, also of those before a resume."""
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_loss()
        super().log(logs, start_time)

    def _mean_loss(self) -> float:
        return self._total_loss_scalar / max(self.state.global_step, 1)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm before clipping, which must be finite: the optimizer would spoil every weight with it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.args.fp16:
            return norm  # its scaler leaves such a step out, and takes a smaller scale
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise Diverged(f"the gradient norm of step {self.state.global_step + 1} is {float(norm)}")
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As the library does it; when a signal has come, with a checkpoint and without an evaluation."""
        if signals.pending_signal():
            self.control.should_save, self.control.should_evaluate = True, False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._end_on_signal()

    def _end_on_signal(self) -> None:
        if name := signals.pending_signal():
            raise Preempted(f"ended by {name} after step {self.state.global_step}, with a checkpoint")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint through ``runner.runs.checkpoint``, and remove those over ``save_total_limit``.

        Raises ``Diverged`` rather than to save a weight that is not finite.
        """
        self._check_weights()
        final, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with checkpoint.writing(final, name, self._manifest_facts) as temporary:
                self.args.output_dir = str(temporary)
                super()._save_checkpoint(model, trial)
                best = self.state.best_model_checkpoint
                if best and Path(best).parent == temporary:
                    self.state.best_model_checkpoint = str(final / name)
                    self.state.save_to_json(str(temporary / name / "trainer_state.json"))
        finally:
            self.args.output_dir, self.args.save_total_limit = str(final), limit
        rotate_checkpoints(
            output_dir=str(final),
            save_total_limit=limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def leave_checkpoint(self) -> Path:
        """Write a checkpoint of the last step, from within one that did not end; returns its folder."""
        self._total_train_tokens, self._tr_loss, metrics = self._before_step
        self._train_metrics().update(metrics)
        self._save_checkpoint(self.model, None)
        return Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the library does it; with ``on_oom=shrink``, in smaller batches when memory runs out."""
        on_shrink = self._context.on_shrink
        while True:
            try:
                return super().evaluate(*args, **kwargs)
            except Exception as error:
                size = self.args.per_device_eval_batch_size // 2
                if not (on_shrink and size and is_out_of_memory(error)):
                    raise
            free_memory()
            self.args.per_device_eval_batch_size = size
            on_shrink(f"out of memory in an evaluation: {size} rows at a time from here on")

    def _check_weights(self) -> None:
        if not all_finite(self.model):
            raise Diverged(f"a trained weight is not finite after step {self.state.global_step}")

    def _manifest_facts(self) -> dict[str, Any]:
        """What the manifest of a checkpoint says: how it was trained, and the totals of the run so far."""
        batch = {name: getattr(self.args, name) for name in _BATCH}
        return {**self._context.resume_facts, "batch": batch, "totals": self._totals()}

    def _totals(self) -> dict[str, Any]:
        """Sums that the library starts anew when it resumes from a checkpoint."""
        return {
            "tokens": self._total_train_tokens,
            "loss": self._total_loss_scalar,
            "unlogged_loss": float(self._tr_loss),
            "logged_step": self._globalstep_last_logged,
            "unlogged": {
                key: [float(each) for each in found] for key, found in self._train_metrics().items()
            },
        }

    def begin(self) -> None:
        """Called once before the first step: take up the sums of a checkpoint, which the library forgets."""
        totals = self.resumed_totals
        if totals is None:
            return
        self._total_train_tokens, self._total_loss_scalar = totals["tokens"], totals["loss"]
        self._tr_loss = torch.full_like(self._tr_loss, totals["unlogged_loss"], dtype=torch.float64)
        self._globalstep_last_logged = totals["logged_step"]
        self._train_metrics().update(totals["unlogged"])
        self.resumed_tokens = self.tokens_seen

    def _train_metrics(self) -> dict[str, list[Any]]:
        """Metrics that TRL collects between two logged steps; a trainer without them has none."""
        return getattr(self, "_metrics", {}).get("train", {})

    def _load_best_model(self) -> None:
        """The best checkpoint must be there and intact; the library would only warn and keep the last."""
        best = Path(str(self.state.best_model_checkpoint))
        if reason := checkpoint.verify(best):
            raise RunnerError(f"the best checkpoint cannot be loaded: {best} {reason}")
        super()._load_best_model()


class _Report(TrainerCallback):
    """Hands every logged step on."""

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


class _Begin(TrainerCallback):
    """Tells the trainer when everything is ready for the first step."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.begin()


def all_finite(model: Any) -> bool:
    """Whether every trained weight is finite."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
