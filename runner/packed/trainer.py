"""The supervised trainer for a pack: one forward and backward pass for all, everything after it for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler

from runner.labels import IGNORE, Encoded
from runner.packed import checkpoint
from runner.packed.adapters import PackedAdapters
from runner.packed.checkpoint import load_states
from runner.packed.compiled import CompiledLayers
from runner.packed.rows import Collator, PackSampler, RowLists, distinct, evaluation_loader
from runner.token_loss import TokenScores, token_scores
from runner.trainer import OnLog, SupervisedTrainer


@dataclass
class Member:
    """One adapter of a pack: its own arguments, rows and log, and what is known of it so far.

    ``ended`` says why it left the pack before the end. ``held_out_rows`` are of each held-out row the summed
    loss (nats) and the labelled tokens, as its last evaluation found them.
    """

    name: str
    arguments: Any
    train: list[Encoded]
    held_out: list[Encoded]
    log: OnLog
    tokens: int = 0
    total_loss: float = 0.0
    ended: dict[str, Any] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    held_out_rows: list[tuple[float, int]] = field(default_factory=list)


class PackedTrainer(SupervisedTrainer):
    """Trains the adapters of a pack side by side, each with the steps of its own run.

    Losses, token counts, clipping, optimizer state and schedule are each member's own. ``at_once`` members
    share a pass; when the device runs out of memory it is halved, which changes no result. ``after_step`` is
    called between steps and may ``drop`` members; a checkpoint is written when ``checkpoint_seconds`` have
    passed since the last.
    """

    def __init__(
        self,
        adapters: PackedAdapters,
        members: list[Member],
        tokenizer: Any,
        datasets: tuple[Any, Any],
        at_once: int,
        checkpoint_seconds: float,
        compiled: CompiledLayers,
        after_step: Callable[[PackedTrainer], None],
    ) -> None:
        super().__init__(adapters.model, members[0].arguments, tokenizer, *datasets, lambda entry: None)
        self.adapters, self.members, self.at_once = adapters, members, at_once
        self._compiled, self._after_step = compiled, after_step
        self._checkpoint_seconds = checkpoint_seconds
        self._dropout = adapters.stream
        self._collator = Collator(tokenizer.pad_token_id)
        self._all = list(members)  # every batch has rows of them all
        self._alive = list(range(len(members)))
        self._window = self._empty_window()
        self._norms, self._rates = torch.zeros(len(members)), [0.0] * len(members)
        self.resume_from: Path | None = None
        self.on_step: Callable[[int, list[float]], None] = lambda step, losses: None
        self.on_end: Callable[[Member], None] = lambda member: None
        self._logged_step, self._saved = 0, time.monotonic()
        self._started = time.monotonic()

    # --- rows

    def get_train_dataloader(self) -> DataLoader:
        """Of every member the batches of its own seed."""
        lists, which = distinct([member.train for member in self._all])
        orders = [(number, int(m.arguments.data_seed)) for number, m in zip(which, self._all, strict=True)]
        sampler: Any = PackSampler(orders, lists, self.args.per_device_train_batch_size)
        loader = DataLoader(RowLists(lists), batch_sampler=sampler, collate_fn=self._collator)
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Labelled tokens of the optimizer step, of every member its own."""
        labels = [self._own(batch)["labels"][:, 1:].to(device) for batch in batch_samples]
        return torch.stack([(each != IGNORE).reshape(len(self.members), -1).sum(1) for each in labels]).sum(0)

    def _own(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The rows of the members that are still in the pack."""
        if len(self._alive) == len(self._all):
            return batch
        return {
            key: value.unflatten(0, (len(self._all), -1))[self._alive].flatten(0, 1)
            for key, value in batch.items()
        }

    # --- the step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of one batch; returns the mean of the members' losses."""
        self._count_pass()
        model.train()
        inputs = self._prepare_inputs(self._own(inputs))
        if self._passes[1] == 0:
            self.adapters.gradients.zero_()
        done, losses = 0, []
        while done < len(self.members):
            last = min(done + self.at_once, len(self.members))
            try:
                figures = self._pass(inputs, done, last, num_items_in_batch)
            except torch.OutOfMemoryError:
                if last - done == 1:
                    raise
                self.at_once = math.ceil((last - done) / 2)
                torch.cuda.empty_cache()
                continue
            losses.append(figures["loss"])
            for name, values in figures.items():
                self._window[name][done:last] += values
            done = last
        self._window["tokens"] += inputs["lengths"].unflatten(0, (len(self.members), -1)).sum(1)
        self._window["passes"] += 1
        return torch.cat(losses).mean()

    def _pass(self, inputs: dict[str, Any], first: int, last: int, counts: torch.Tensor) -> dict[str, Any]:
        """Forward and backward for some of the members; their gradients are added only when all went well."""
        with self._compiled:
            scores = self.score(inputs, first, last)
            losses = -by_member(scores.log_probs, last - first) / counts[first:last].clamp(min=1)
            gradients = torch.autograd.grad(losses.sum(), self.adapters.tensors)
        self.adapters.add_gradients(gradients)
        return {"loss": losses.detach(), **shares(scores, last - first)}

    def score(self, inputs: dict[str, Any], first: int, last: int) -> TokenScores:
        """Score the rows of the members ``first`` to ``last`` of a batch that has rows of all."""
        rows = inputs["input_ids"].shape[0] // len(self.members)
        part = slice(first * rows, last * rows)
        self.adapters.state.show(first, last)
        with self.accelerator.autocast():
            return token_scores(self.model, inputs["input_ids"][part], inputs["labels"][part])

    def _clip_grad_norm(self, model: Any) -> None:
        """Nothing yet: the norm is taken below, also of a member that is not clipped."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
        """Clip each member's gradient to its own ``max_grad_norm``, as ``clip_grad_norm_`` of torch does."""
        gradients = self.adapters.gradients
        precise = torch.float64 if gradients.dtype == torch.float64 else torch.float32
        self._norms = torch.linalg.vector_norm(gradients, dim=1, dtype=precise)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        limits = [member.arguments.max_grad_norm or math.inf for member in self.members]
        most = torch.tensor(limits, dtype=precise, device=gradients.device)
        gradients.mul_((most / (self._norms + 1e-6)).clamp(max=1.0)[:, None].to(gradients.dtype))

    def create_optimizer(self, model: Any = None) -> Any:
        """The library's optimizer with a group for each member, whose values are one tensor."""
        self.adapters.flatten()
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(self.args)
        groups = [
            {"params": [row], "lr": m.arguments.learning_rate, "weight_decay": m.arguments.weight_decay}
            for row, m in zip(self.adapters.rows, self.members, strict=True)
        ]
        self.optimizer = kind(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The library's schedule of each member, for its own group."""
        schedules = [_schedule(member.arguments, num_training_steps) for member in self.members]
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # under accelerate's wrapper
        self.lr_scheduler = LambdaLR(inner, schedules)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def drop(self, gone: list[int]) -> None:
        """Take members out between two steps; the others go on as if nothing had happened."""
        if not gone:
            return
        for index in gone:
            self.on_end(self.members[index])
        chosen = [index for index in range(len(self.members)) if index not in gone]
        self.members = [self.members[index] for index in chosen]
        self._alive = [self._alive[index] for index in chosen]
        self._norms, self._rates = self._norms[chosen], [self._rates[index] for index in chosen]
        self._window = {
            name: values if name == "passes" else values[chosen] for name, values in self._window.items()
        }
        optimizer, scheduler = getattr(self.optimizer, "optimizer", self.optimizer), self.lr_scheduler
        for index in gone:
            optimizer.state.pop(self.adapters.rows[index], None)
        optimizer.param_groups[:] = [optimizer.param_groups[index] for index in chosen]
        for name in ("lr_lambdas", "base_lrs", "_last_lr"):
            setattr(scheduler, name, [getattr(scheduler, name)[index] for index in chosen])
        if chosen:
            self.adapters.keep(chosen)

    # --- what is logged, measured and saved

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._saved >= self._checkpoint_seconds:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._after_step(self)
        if not self.members:
            self.control.should_training_stop = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Give every member the line that its own run would log; one that is not finite ends there."""
        if "loss" not in logs:
            return
        window, step = self._window, self.state.global_step
        steps, self._logged_step = step - self._logged_step, step
        passes, precise = window.pop("passes"), torch.float64
        table = torch.stack([values.to(precise) for values in (*window.values(), self._norms)]).tolist()
        figures = dict(zip((*window, "grad_norm"), table, strict=True))
        lost = []
        for index, member in enumerate(self.members):
            own = {name: values[index] for name, values in figures.items()}
            member.tokens += int(own.pop("tokens"))
            member.total_loss += own["loss"]
            loss, norm = own["loss"] / steps, own["grad_norm"]
            entry = {"loss": loss, "grad_norm": norm, "learning_rate": self._rates[index]}
            entry |= {name: own[name] / int(passes) for name in ("entropy", "mean_token_accuracy")}
            self.tell(member, entry | {"num_tokens": member.tokens})
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss is {loss}" if math.isfinite(norm) else f"gradient norm is {norm}"
                member.ended = {"status": "diverged", "reason": f"the {what} at step {step}"}
                lost.append(index)
        self.on_step(step, [value / steps for value in figures["loss"]])
        self._window = self._empty_window()
        self.drop(lost)

    def tell(self, member: Member, entry: dict[str, Any]) -> None:
        """Log a line of one member."""
        step, seconds = self.state.global_step, round(time.monotonic() - self._started, 3)
        member.log({"step": step, **entry, "epoch": self.state.epoch, "seconds": seconds})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure all members on their held-out rows; returns the mean of their held-out losses."""
        self.adapters.model.eval()
        lists, which = distinct([member.held_out for member in self.members])
        batch_size = self.args.per_device_eval_batch_size
        rows: list[torch.Tensor] = []
        totals: dict[str, Any] = {"loss": 0.0, "entropy": 0.0, "mean_token_accuracy": 0.0}
        batches = seen = 0
        for batch in evaluation_loader(lists, which, batch_size, self._collator):
            inputs = self._prepare_inputs(batch)
            count = len(batch["lengths"]) // len(self.members)
            found = self._evaluate_batch(inputs)
            rows.append(found.pop("rows"))
            totals["loss"] += found.pop("loss") * count  # the library weighs batches by their rows
            for name, values in found.items():
                totals[name] += values
            batches, seen = batches + 1, seen + count
        per_row = torch.cat(rows, dim=1).tolist()
        for index, member in enumerate(self.members):
            member.held_out_rows = [(loss, int(tokens)) for loss, tokens in per_row[index]]
            member.scores = {"eval_loss": (totals["loss"][index] / seen).item()}
            member.scores |= {
                f"eval_{name}": (totals[name][index] / batches).item() for name in totals if name != "loss"
            }
            self.tell(member, {**member.scores, "eval_num_tokens": member.tokens})
        return {"eval_loss": sum(m.scores["eval_loss"] for m in self.members) / len(self.members)}

    @torch.no_grad()
    def _evaluate_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        parts = []
        for first in range(0, len(self.members), self.at_once):
            last = min(first + self.at_once, len(self.members))
            scores = self.score(inputs, first, last)
            sums = torch.stack([-scores.log_probs.sum(1), scores.mask.sum(1).to(scores.log_probs.dtype)], -1)
            counts = by_member(scores.mask, last - first).clamp(min=1)
            losses = -by_member(scores.log_probs, last - first) / counts
            parts.append(
                {
                    "loss": losses,
                    "rows": sums.unflatten(0, (last - first, -1)),
                    **shares(scores, last - first),
                }
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write all members' adapters of a checkpoint."""
        self._saved = time.monotonic()
        checkpoint.save(Path(str(output_dir)), self.adapters, self.members)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load(Path(resume_from_checkpoint), self.adapters, self.members)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_states(Path(checkpoint), self.members, self.optimizer, self.lr_scheduler)
            self._logged_step = self.state.global_step

    def _empty_window(self) -> dict[str, Any]:
        names = ("loss", "entropy", "mean_token_accuracy", "tokens")
        zeros = {name: torch.zeros(len(self.members), dtype=torch.float64) for name in names}
        return {name: values.to(self.args.device) for name, values in zeros.items()} | {"passes": 0}


def by_member(values: torch.Tensor, members: int) -> torch.Tensor:
    """Sums [members] of values [rows, length], the same number of rows each."""
    return values.reshape(members, -1).sum(1)


def shares(scores: TokenScores, members: int) -> dict[str, torch.Tensor]:
    """Each member's mean entropy and accuracy over its labelled tokens, under TRL's names."""
    counts = by_member(scores.mask, members).clamp(min=1)
    columns = {"entropy": scores.entropy, "mean_token_accuracy": scores.is_top1}
    return {name: by_member(values.detach(), members) / counts for name, values in columns.items()}


def _schedule(arguments: Any, steps: int) -> Callable[[int], float]:
    """The factor by step that the library's scheduler of these arguments applies to the learning rate."""
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    scheduler: Any = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=stand_in,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    return scheduler.lr_lambdas[0]
