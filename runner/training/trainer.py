"""The library's trainers with three guarantees more: they stop at the first loss or gradient that is not
finite, a checkpoint is complete or not there, and a signal ends them between two steps with a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from runner.core import signals
from runner.core.errors import Diverged, RunnerError
from runner.core.signals import Preempted
from runner.models.keyed_dropout import key_dropout
from runner.parallel.zero import all_finite
from runner.runs import checkpoint
from runner.speed.decoder import FastDecoder
from runner.speed.late_log import LateLog
from runner.speed.short_walks import short_walks
from runner.training.callbacks import Places, Report
from runner.training.context import TrainerContext
from runner.training.evaluating import EvaluatingTrainer
from runner.training.resumed import Resumed, load_weights

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class GuardedTrainer(EvaluatingTrainer, Trainer):
    """What our trainers add to TRL's and transformers', before which this stands among the base classes.

    ``datasets`` are the tokenised training examples and the held-out ones, if there are any. Raises
    ``Diverged`` from the first step whose loss or gradient norm is not finite, before the optimizer uses it,
    and ``Preempted`` from the step in which a signal came, behind its checkpoint.
    """

    decoder: FastDecoder | None = None  # of a trainer whose loss has the pieces of ``speed``
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
        if getattr(args, "_n_gpu", 1) > 1:
            args._n_gpu = 1  # TRL raises on DataParallel; one process drives one GPU
        self.share_steps(context.group, args, context.parallel)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            callbacks=[Report(self, context.on_log), Places(self)],
            **more,
        )
        self._context = context
        self.share_backward()
        self.late_log = LateLog(self) if context.pieces.async_logging else None
        # now, as weights in parts count for nothing; the library looks at every one for every batch
        self._flos_per_token = super().floating_point_ops({"input_ids": torch.zeros(1, 1)})
        self.resumed = Resumed(self)
        self.resumed_tokens = 0
        self._saved_step = 0
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
        if self.late_log is None and not torch.isfinite(loss):
            raise Diverged(f"the loss of step {self.state.global_step + 1} is {loss.item()}")
        return loss

    def _count_pass(self) -> None:
        """Tell the dropout which forward pass of the run comes next."""
        step = self.state.global_step
        self._passes = (step, self._passes[1] + 1 if self._passes[0] == step else 0)
        part = self.take_part(*self._passes)
        if self._passes[1] == 0:
            metrics = {name: list(found) for name, found in self._train_metrics().items()}
            self._before_step = self._total_train_tokens, self._tr_loss.clone(), metrics
        if self._dropout is not None:
            first = part.row if self.group.count > 1 else None
            self._dropout.at(step * self.shares.passes + part.number, first)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run writes one card, with the adapter."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a signal is answered between two steps."""
        self.resumed.start = kwargs.get("resume_from_checkpoint")
        agreed = self.group.count > 1
        with signals.defer_signals(agreed), short_walks(self.model) if self.decoder else nullcontext():
            result = super().train(*args, **kwargs)
        self.end_steps()
        self.check_copies("after training")
        return result._replace(training_loss=self._mean_loss())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the library does it, but the mean loss is that of all steps, also of those before a resume."""
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_loss()
        for found in self._train_metrics().values():  # tensors, where they are read late
            found[:] = [each.item() if isinstance(each, torch.Tensor) else each for each in found]
        self.share_metrics(self._train_metrics())
        super().log(logs, start_time)

    def _mean_loss(self) -> float:
        return self._total_loss_scalar / max(self.state.global_step, 1)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm before clipping, which must be finite: the optimizer would spoil every weight with it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.args.fp16 or self.late_log is not None:
            return norm  # fp16's scaler leaves such a step out, and takes a smaller scale
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise Diverged(f"the gradient norm of step {self.state.global_step + 1} is {float(norm)}")
        return norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As the library does it, which tests only after a step whether it was the last: a run that resumes
        behind its last step would train one more."""
        if self.resumed.ended():
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As the library does it; when a signal has come, with a checkpoint and without an evaluation, which
        the run that resumes from there makes up for."""
        norm, rate = args[1], kwargs.get("learning_rate")
        if norm is not None or rate is not None:
            self.resumed.last = (norm, rate)
        if self.late_log is not None:
            self.late_log.take(norm, rate)
        self.resumed.postpone_on_signal()
        if self.control.should_evaluate or self.control.should_save or self.resumed.ended():
            self.read_log()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._end_on_signal()

    def read_log(self) -> None:
        """Log what the last step left. Raises ``Diverged``."""
        if self.late_log is not None:
            self.late_log.read()

    def floating_point_ops(self, inputs: Any) -> float:
        """As the library counts them."""
        if "input_ids" not in inputs:
            return super().floating_point_ops(inputs)
        return self._flos_per_token * inputs["input_ids"].numel()

    def _end_on_signal(self) -> None:
        if name := signals.pending_signal():
            if self._saved_step != self.state.global_step:
                self.args.save_only_model = False  # it shall be resumed
                self.save_checkpoint()
            raise Preempted(f"ended by {name} after step {self.state.global_step}, with a checkpoint")

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the last step."""
        self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, and remove those over ``save_total_limit``.

        Raises ``Diverged`` rather than to save a weight that is not finite.
        """
        self.read_log()
        self._check_weights()
        with self.in_full():
            if not self.group.follows:
                self._write_checkpoint(model, trial)
        self._saved_step = self.state.global_step
        best = self.group.share(self.state.best_model_checkpoint)
        self.state.best_model_checkpoint = best

    def _write_checkpoint(self, model: Any, trial: Any) -> None:
        """As the library does it, through ``runner.runs.checkpoint``."""
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
        self.read_log()
        self._total_train_tokens, self._tr_loss, metrics = self._before_step
        self._train_metrics().update(metrics)
        self.save_checkpoint()
        return Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"

    def _check_weights(self) -> None:
        if not all(self.group.gather(all_finite(self.model))):
            raise Diverged(f"a trained weight is not finite after step {self.state.global_step}")

    def _manifest_facts(self) -> dict[str, Any]:
        """What the manifest of a checkpoint says: how it was trained, and where the run stood."""
        batch = dict(zip(_BATCH, (self.shares.batch, self.shares.passes), strict=True))
        facts = {"batch": batch, "lines": self._context.lines(), "totals": self._totals()}
        return {**self._context.resume_facts, **facts, "due": self.resumed.due()}

    def _totals(self) -> dict[str, Any]:
        """Sums that the library starts anew when it resumes from a checkpoint."""
        return {
            "tokens": self._total_train_tokens,
            "loss": self._total_loss_scalar,
            "unlogged_loss": float(self._tr_loss),
            "logged_step": self._globalstep_last_logged,
            "training": bool(
                getattr(self.model, "training", True)
            ),  # by which TRL knows what kind of line it logs
            "unlogged": {
                key: [float(each) for each in found] for key, found in self._train_metrics().items()
            },
        }

    def begin(self) -> None:
        """Called once before the first step: take up the sums of a checkpoint, which the library forgets, and
        what was still to be done at its step."""
        self.check_copies("before training")
        facts = self.resumed.facts()
        if totals := facts.get("totals"):
            self._total_train_tokens, self._total_loss_scalar = totals["tokens"], totals["loss"]
            self._tr_loss = torch.full_like(self._tr_loss, totals["unlogged_loss"], dtype=torch.float64)
            self._globalstep_last_logged = totals["logged_step"]
            self._train_metrics().update(totals["unlogged"])
            model: Any = self.model
            model.train(totals.get("training", True))
            self.resumed_tokens = self.tokens_seen
        self.resumed.catch_up()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The random state of a checkpoint, or of the one that was written when it had caught up."""
        super()._load_rng_state(self.resumed.caught_up or checkpoint)

    def _tokens_of_step(self) -> int:
        return self._total_train_tokens - self._before_step[0]

    def _train_metrics(self) -> dict[str, list[Any]]:
        """Metrics that TRL collects between two logged steps; a trainer without them has none."""
        return getattr(self, "_metrics", {}).get("train", {})

    def _load_best_model(self) -> None:
        """The best checkpoint must be there and intact; the library would only warn and keep the last."""
        best = Path(str(self.state.best_model_checkpoint))
        if reason := checkpoint.verify(best):
            raise RunnerError(f"the best checkpoint cannot be loaded: {best} {reason}")
        self.end_steps()
        if not load_weights(self.model, best):
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not load_weights(self.model, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
