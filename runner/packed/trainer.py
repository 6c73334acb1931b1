"""The trainer of a pack: one forward and backward pass for all, everything after it for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from runner.core import console, signals
from runner.data.labels import IGNORE
from runner.packed import checkpoint
from runner.packed.adapters import PackedAdapters, as_trl_prepares
from runner.packed.batches import PackLoader, PackSampler, RowLists, distinct
from runner.packed.checkpoint import load_states
from runner.packed.compiled import CompiledLayers
from runner.packed.evaluation import evaluate_members
from runner.packed.member import Line, Member, schedule, to_host
from runner.packed.memory import fitting, run_in_chunks
from runner.packed.objective import Batch, PackObjective
from runner.training.token_loss import TokenLogprobs, token_logprobs
from runner.training.trainer import GuardedTrainer


class PackedTrainer(GuardedTrainer):
    """Trains the adapters of a pack side by side, each with the steps of its own run.

    ``objective`` says what rows and losses are; losses, token counts, clipping, optimizer state and schedule
    are each member's own. ``cells_per_pass`` members share a pass; when the device runs out of memory it is
    halved, which changes no result. ``after_step`` is called between steps and may ``drop`` members; a
    checkpoint is written when ``checkpoint_seconds`` have passed since the last.
    """

    def __init__(
        self,
        adapters: PackedAdapters,
        members: list[Member],
        objective: PackObjective,
        tokenizer: Any,
        datasets: tuple[Any, Any],
        cells_per_pass: int,
        checkpoint_seconds: float,
        compiled: CompiledLayers,
        after_step: Callable[[PackedTrainer], None],
    ) -> None:
        as_trl_prepares(adapters.model, members[0].arguments)
        super().__init__(adapters.model, members[0].arguments, tokenizer, *datasets, lambda entry: None)
        self.adapters, self.members, self.cells_per_pass = adapters, members, cells_per_pass
        self.objective, self.collator = objective, objective.collator
        self.compiled, self._after_step = compiled, after_step
        self._checkpoint_seconds = checkpoint_seconds
        self._dropout = adapters.stream
        self._all = list(members)  # every batch has rows of them all
        self._alive = list(range(len(members)))
        self._window = self._empty_window()
        self._norms, self._rates = torch.zeros(len(members)), [0.0] * len(members)
        self.resume_from: Path | None = None
        self.longest = 1  # tokens of the longest row
        self.on_step: Callable[[int, list[float]], None] = lambda step, losses: None
        self.on_end: Callable[[Member], None] = lambda member: None
        self._line: Line | None = None
        self._logged_step, self._started = 0, time.monotonic()
        self._saved = self._started

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the last line is told as well, and what came after it is counted."""
        self.objective.start(self)
        result = super().train(*args, **kwargs)
        self._tell_line()
        if self.members and self.state.global_step > self._logged_step:
            self._keep_line()
            self._tell_line(logged=False)
        return result

    def begin(self) -> None:
        """Find out how many members fit in a pass, before the first of them."""
        super().begin()
        if self.args.device.type == "cuda":
            estimated, self.cells_per_pass = self.cells_per_pass, fitting(self, self.longest)
            if self.cells_per_pass != estimated:
                console.warn(f"{self.cells_per_pass} of {len(self.members)} cells share a pass, as was tried")

    # --- rows

    def get_train_dataloader(self) -> PackLoader:
        """Of every member the batches of its own seed."""
        lists, which = distinct([member.train for member in self._all])
        orders = [(number, int(m.arguments.data_seed)) for number, m in zip(which, self._all, strict=True)]
        sizes = self.args.per_device_train_batch_size, self.objective.sides
        sampler: Any = PackSampler(orders, lists, *sizes)
        return PackLoader(RowLists(lists), batch_sampler=sampler, collate_fn=self.collator)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """What every member's losses of the optimizer step are divided by."""
        batches = [self._own(batch) for batch in batch_samples]
        return self._to_device(self.objective.divisors(batches, len(self.members)))

    def _own(self, batch: Batch) -> Batch:
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
        inputs = self._own(inputs)
        losses = []

        def run(first: int, last: int) -> None:
            figures = self._pass(inputs, first, last, num_items_in_batch)
            losses.append(figures["loss"])
            for name, values in figures.items():
                self._window[name][first:last] += values

        self.cells_per_pass = run_in_chunks(len(self.members), self.cells_per_pass, run)
        self._window["tokens"] += self._to_device(
            inputs["lengths"].unflatten(0, (len(self.members), -1)).sum(1)
        )
        self._window["passes"] += 1
        return torch.cat(losses).mean()

    def _pass(self, inputs: Batch, first: int, last: int, divisors: torch.Tensor) -> Batch:
        """Forward and backward for some of the members; their gradients are added only when all went well."""
        part = self.show(inputs, first, last)
        with self.compiled:
            losses, figures = self.objective.measure(self.score(part), part, self.members[first:last])
            losses = losses / divisors[first:last]
            gradients = torch.autograd.grad(losses.sum(), self.adapters.tensors)
        self.adapters.add_gradients(gradients, self._passes[1] == 0 and first == 0)
        return {"loss": losses.detach(), **figures}

    def show(self, batch: Batch, first: int, last: int) -> Batch:
        """Turn to the members ``first`` to ``last``; returns their rows of a batch that has rows of all."""
        self.adapters.state.show(first, last)
        rows = batch["input_ids"].shape[0] // len(self.members)
        return {name: values[first * rows : last * rows] for name, values in batch.items()}

    def score(self, batch: Batch) -> TokenLogprobs:
        """Score the rows of a batch on the host by the adapters that are shown."""
        ids, labels = batch["input_ids"], batch["labels"]
        places = tuple(map(self._to_device, (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)))
        ids, labels = self._to_device(ids), self._to_device(labels)
        with self.accelerator.autocast():
            return token_logprobs(self.model, ids, labels, places, self.objective.mean_logits)

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Copy from the host behind the work that the GPU has still to do."""
        if self.args.device.type != "cuda":
            return values.to(self.args.device)
        return values.pin_memory().to(self.args.device, non_blocking=True)

    def _clip_grad_norm(self, model: Any) -> None:
        """Nothing yet: the norm is taken below, also of a member that is not clipped."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
        """Clip each member's gradient to its own ``max_grad_norm``."""
        precise = torch.float64 if self.adapters.values.dtype == torch.float64 else torch.float32
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        for member, rate in zip(self.members, self._rates, strict=True):
            member.moved |= rate > 0
        limits = [member.arguments.max_grad_norm or math.inf for member in self.members]
        self._norms = self.adapters.clip(self._to_device(torch.tensor(limits, dtype=precise)))

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
        schedules = [schedule(member.arguments, num_training_steps) for member in self.members]
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
        """As the library does it, but what is logged is read a step later, when it has long arrived."""
        step = self.state.global_step
        control = self.control
        if control.should_log and step > self._logged_step:
            self._tell_line()
            self._keep_line()
        if control.should_evaluate and not signals.pending_signal():
            self.evaluate()
        due = time.monotonic() - self._saved >= self._checkpoint_seconds
        if self.members and (control.should_save or due or signals.pending_signal()):
            self.save_checkpoint()
        control.should_log = control.should_evaluate = control.should_save = False
        self._after_step(self)
        if self.members:
            self._end_if_asked()
        else:
            self.control.should_training_stop = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: every member has lines of its own."""

    def _keep_line(self) -> None:
        """Start copying the figures since the last line to the host."""
        window, step = self._window, self.state.global_step
        figures = {name: values.double() for name, values in window.items() if name != "passes"}
        names = [*figures, "grad_norm"]
        table = torch.stack([*figures.values(), self._norms.double()])
        facts = {"steps": step - self._logged_step, "passes": window["passes"], "step": step}
        self._line = Line(names, to_host(table), self._rates, facts, self.state.epoch, self._seconds())
        self._logged_step, self._window = step, self._empty_window()

    def _tell_line(self, logged: bool = True) -> None:
        """Give every member the line that its own run would log; one that is not finite ends there."""
        line, self._line = self._line, None
        if line is None:
            return
        figures = dict(zip(line.names, line.table(), strict=True))
        steps, passes, step = (line.facts[name] for name in ("steps", "passes", "step"))
        lost = []
        for index, member in enumerate(self.members):
            own = {name: values[index] for name, values in figures.items()}
            member.tokens += int(own["tokens"])
            member.total_loss += own["loss"]
            loss, norm = own["loss"] / steps, own["grad_norm"]
            entry = {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": line.rates[index]}
            entry |= {name: own[name] / passes for name in self.objective.figures}
            times = {"epoch": line.epoch, "seconds": line.seconds}
            if logged:
                member.log({**entry, "num_tokens": member.tokens, **times})
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"loss is {loss}" if math.isfinite(norm) else f"gradient norm is {norm}"
                member.ended = {"status": "diverged", "reason": f"the {what} at step {step}"}
                lost.append(index)
        self.on_step(step, [value / steps for value in figures["loss"]])
        self.drop(lost)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 6)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure all members on their held-out rows; returns the mean of their held-out losses."""
        self._tell_line()
        if not self.members:
            return {}
        self.adapters.model.eval()
        evaluate_members(self)
        times = {"epoch": self.state.epoch, "seconds": self._seconds()}
        for member in self.members:
            line = {"step": self.state.global_step, **member.scores, "eval_num_tokens": member.tokens}
            member.log(line | times)
        return {"eval_loss": sum(m.scores["eval_loss"] for m in self.members) / len(self.members)}

    def save_checkpoint(self) -> None:
        """Write a checkpoint of all members, between two steps."""
        self._check_weights()
        if self.members:
            self._save_checkpoint(self.model, None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write all members' adapters of a checkpoint."""
        self._saved = time.monotonic()
        window = {name: values.tolist() for name, values in self._window.items() if name != "passes"}
        unlogged = {"step": self._logged_step, "passes": self._window["passes"], "figures": window}
        checkpoint.save(Path(str(output_dir)), self.adapters, self.members, unlogged)

    def _check_weights(self) -> None:
        """Before a checkpoint: members that have diverged end, and the others are saved."""
        self._tell_line()
        self.drop_not_finite()

    def drop_not_finite(self) -> None:
        """End the members that have a weight which is not finite."""
        lost = self.adapters.not_finite() if self.members else []
        for index in lost:
            self.members[index].ended = {"status": "diverged", "reason": "a trained weight is not finite"}
        self.drop(lost)

    def _manifest_facts(self) -> dict[str, Any]:
        return self.facts

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load(Path(resume_from_checkpoint), self.adapters, self.members)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            unlogged = load_states(Path(checkpoint), self.members, self.optimizer, self.lr_scheduler)
            self._logged_step, self._window["passes"] = unlogged["step"], unlogged["passes"]
            for name, values in unlogged["figures"].items():
                self._window[name] += torch.tensor(values, dtype=torch.float64, device=self.args.device)

    def _empty_window(self) -> dict[str, Any]:
        names = ("loss", *self.objective.figures, "tokens")
        zeros = torch.zeros(len(names), len(self.members), dtype=torch.float64, device=self.args.device)
        return dict(zip(names, zeros, strict=True)) | {"passes": 0}
