"""The trainer of a pack: one forward and backward pass for all, everything after it for each."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from runner.core import console
from runner.packed import checkpoint
from runner.packed.adapters import PackedAdapters, as_trl_prepares
from runner.packed.batches import PackLoader, PackSampler, RowLists, distinct
from runner.packed.cell import CellState, LogLine, keep_groups, log_line, log_scores, schedule
from runner.packed.checkpoint import load_states
from runner.packed.evaluation import evaluate_cells
from runner.packed.memory import probe_cells_per_pass
from runner.packed.objective import PackObjective
from runner.packed.passes import Batch, Passes
from runner.packed.plan import PackPlan
from runner.speed.late_log import HostCopy
from runner.training.context import TrainerContext
from runner.training.trainer import GuardedTrainer


class PackedTrainer(GuardedTrainer):
    """Trains the adapters of a pack side by side, each with the steps of its own run.

    ``objective`` says what examples and losses are; losses, token counts, clipping, optimizer state and
    schedule are each cell's own.
    """

    def __init__(
        self,
        adapters: PackedAdapters,
        cells: list[CellState],
        objective: PackObjective,
        tokenizer: Any,
        datasets: tuple[Any, Any],
        plan: PackPlan,
    ) -> None:
        as_trl_prepares(adapters.model, cells[0].arguments)
        # no pieces: the steps of a pack are its own, and so are those that it has
        context = TrainerContext(on_log=lambda entry: None, resume_facts={})
        super().__init__(adapters.model, cells[0].arguments, tokenizer, datasets, context)
        self.adapters, self.cells, self.objective, self._plan = adapters, cells, objective, plan
        self.passes = Passes(adapters, plan.cells_per_pass, self.accelerator.autocast, plan.pieces)
        self._dropout = adapters.stream
        self._all = list(cells)  # every batch has rows of them all
        self._alive = list(range(len(cells)))
        self._window = self._empty_window()
        self._norms, self._rates = torch.zeros(len(cells), device=self.args.device), [0.0] * len(cells)
        self._line: LogLine | None = None
        self._logged_step, self._started = 0, time.monotonic()
        self._saved = self._started

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the last line is logged as well, and what came after it is counted."""
        self.objective.start(self.passes, self.cells, self.args.per_device_train_batch_size)
        result = super().train(*args, **kwargs)
        if self._saved_step != self.state.global_step:
            self.save_checkpoint()  # the cells are concluded one by one: those that are left resume here
        self._log_line()
        if self.cells and self.state.global_step > self._logged_step:
            self._collect_line()
            self._log_line(logged=False)
        return result

    def begin(self) -> None:
        """Find out how many cells fit in a pass, before the first of them."""
        if self.args.device.type == "cuda":
            rows = self.args.per_device_train_batch_size * self.objective.sequences
            probe_cells_per_pass(self.passes, len(self.cells), rows, self._plan.longest)
            if (tried := self.passes.cells_per_pass) != self._plan.cells_per_pass:
                console.warn(f"{tried} of {len(self.cells)} cells share a pass, as was tried on the device")
        super().begin()
        if self.state.global_step:
            self._plan.after_step(self)  # what was to be decided between the checkpoint and the next step

    # --- rows

    def get_train_dataloader(self) -> PackLoader:
        """Of every cell the batches of its own seed."""
        lists, which = distinct([cell.train for cell in self._all])
        orders = [(number, int(m.arguments.data_seed)) for number, m in zip(which, self._all, strict=True)]
        sizes = self.args.per_device_train_batch_size, self.objective.sequences
        sampler: Any = PackSampler(orders, lists, *sizes)
        return PackLoader(RowLists(lists), batch_sampler=sampler, collate_fn=self.objective.collator)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """What every cell's losses of the optimizer step are divided by."""
        batches = [self._own(batch) for batch in batch_samples]
        return self.passes.to_device(self.objective.divisors(batches, len(self.cells)))

    def _own(self, batch: Batch) -> Batch:
        """The rows of the cells that are still in the pack."""
        if len(self._alive) == len(self._all):
            return batch
        return {
            key: value.unflatten(0, (len(self._all), -1))[self._alive].flatten(0, 1)
            for key, value in batch.items()
        }

    # --- the step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of one batch; returns the mean of the cells' losses."""
        self._count_pass()
        model.train()
        inputs = self._own(inputs)
        losses = []

        def run(first: int, last: int) -> None:
            metrics = self._pass(inputs, first, last, num_items_in_batch)
            losses.append(metrics["loss"])
            for name, values in metrics.items():
                self._window[name][first:last] += values

        self.passes.run(len(self.cells), run)
        self._window["tokens"] += self.passes.to_device(
            inputs["lengths"].unflatten(0, (len(self.cells), -1)).sum(1)
        )
        self._window["passes"] += 1
        return torch.cat(losses).mean()

    def _pass(self, inputs: Batch, first: int, last: int, divisors: torch.Tensor) -> Batch:
        """Forward and backward for some of the cells; their gradients are added only when all went well."""
        part = self.passes.select(inputs, first, last)
        scores = self.passes.score(part, self.objective.mean_logits)
        losses, metrics = self.objective.measure(scores, part, self.cells[first:last])
        losses = losses / divisors[first:last]
        gradients = self.passes.gradients(losses.sum())
        self.adapters.add_gradients(gradients, self._passes[1] == 0 and first == 0)
        return {"loss": losses.detach(), **metrics}

    def _clip_grad_norm(self, model: Any) -> None:
        """Nothing yet: the norm is taken below, also of a cell that is not clipped."""

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
        """Clip each cell's gradient to its own ``max_grad_norm``."""
        precise = torch.float64 if self.adapters.values.dtype == torch.float64 else torch.float32
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        for cell, rate in zip(self.cells, self._rates, strict=True):
            cell.moved |= rate > 0
        limits = [cell.arguments.max_grad_norm or math.inf for cell in self.cells]
        self._norms = self.adapters.clip(self.passes.to_device(torch.tensor(limits, dtype=precise)))

    def create_optimizer(self, model: Any = None) -> Any:
        """The library's optimizer with a group for each cell, whose values are one tensor."""
        self.adapters.flatten()
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(self.args)
        groups = [
            {"params": [row], "lr": m.arguments.learning_rate, "weight_decay": m.arguments.weight_decay}
            for row, m in zip(self.adapters.rows, self.cells, strict=True)
        ]
        self.optimizer = kind(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The library's schedule of each cell, for its own group."""
        schedules = [schedule(cell.arguments, num_training_steps) for cell in self.cells]
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # under accelerate's wrapper
        self.lr_scheduler = LambdaLR(inner, schedules)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def drop(self, gone: list[int]) -> None:
        """Take cells out between two steps; which changes nothing for the others."""
        if not gone:
            return
        for index in gone:
            self._plan.on_end(self.cells[index])
        chosen = [index for index in range(len(self.cells)) if index not in gone]
        self.cells = [self.cells[index] for index in chosen]
        self._alive = [self._alive[index] for index in chosen]
        self._norms, self._rates = self._norms[chosen], [self._rates[index] for index in chosen]
        self._window = {
            name: values if name == "passes" else values[chosen] for name, values in self._window.items()
        }
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        keep_groups(optimizer, self.lr_scheduler, [self.adapters.rows[index] for index in gone], chosen)
        if chosen:
            self.adapters.keep(chosen)

    # --- what is logged, measured and saved

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As the library does it, but what is logged is read a step later, when it has long arrived."""
        step = self.state.global_step
        control = self.control
        if control.should_log and step > self._logged_step:
            self._log_line()
            self._collect_line()
        self.resumed.postpone_on_signal()
        if control.should_evaluate:
            self.evaluate()
        due = time.monotonic() - self._saved >= self._plan.checkpoint_seconds
        if self.cells and (control.should_save or due):
            self.save_checkpoint()
        control.should_log = control.should_evaluate = control.should_save = False
        self._plan.after_step(self)
        if self.cells:
            self._end_on_signal()
        else:
            self.control.should_training_stop = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: every cell has lines of its own."""

    def _collect_line(self) -> None:
        """Start copying the metrics since the last line to the host."""
        window, step = self._window, self.state.global_step
        metrics = {name: values.double() for name, values in window.items() if name != "passes"}
        names = [*metrics, "grad_norm"]
        table = torch.stack([*metrics.values(), self._norms.double()])
        facts = {"steps": step - self._logged_step, "passes": window["passes"], "step": step}
        self._line = LogLine(names, HostCopy(table), self._rates, facts, self.state.epoch, self._seconds())
        self._logged_step, self._window = step, self._empty_window()

    def _log_line(self, logged: bool = True) -> None:
        """Give every cell the line that its own run would log; one that is not finite ends there."""
        line, self._line = self._line, None
        if line is None:
            return
        step, losses, lost = log_line(line, self.cells, self.objective.metrics, logged)
        self._plan.on_step(step, losses)
        self.drop(lost)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 6)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure all cells on their held-out rows; returns the mean of their held-out losses."""
        self._log_line()
        if not self.cells:
            return {}
        self.adapters.model.eval()
        evaluate_cells(self.passes, self.cells, self.objective, self.args.per_device_eval_batch_size)
        times = {"epoch": self.state.epoch, "seconds": self._seconds()}
        losses = [cell.scores["eval_loss"] for cell in self.cells]
        self.drop(log_scores(self.cells, self.state.global_step, times))
        return {"eval_loss": sum(losses) / len(losses)}

    def save_checkpoint(self) -> None:
        """Write a checkpoint of all cells, between two steps."""
        self._check_weights()
        if self.cells:
            self._save_checkpoint(self.model, None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write all cells' adapters of a checkpoint."""
        self._saved = time.monotonic()
        window = {name: values.tolist() for name, values in self._window.items() if name != "passes"}
        window |= {"grad_norm": self._norms.tolist(), "rate": self._rates}
        unlogged = {"step": self._logged_step, "passes": self._window["passes"], "figures": window}
        checkpoint.save(Path(str(output_dir)), self.adapters, self.cells, unlogged)

    def _check_weights(self) -> None:
        """Before a checkpoint: cells that have diverged end, and the others are saved."""
        self._log_line()
        self.drop_not_finite()

    def drop_not_finite(self) -> None:
        """End the cells that have a weight which is not finite."""
        lost = self.adapters.not_finite() if self.cells else []
        for index in lost:
            self.cells[index].ended = {"status": "diverged", "reason": "a trained weight is not finite"}
        self.drop(lost)

    def _manifest_facts(self) -> dict[str, Any]:
        return {"due": self.resumed.due()}  # the totals are the cells' own, in pack.json

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load(Path(resume_from_checkpoint), self.adapters, self.cells)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            unlogged = load_states(Path(checkpoint), self.cells, self.optimizer, self.lr_scheduler)
            self._logged_step, self._window["passes"] = unlogged["step"], unlogged["passes"]
            figures, zeros = unlogged["figures"], [0.0] * len(self.cells)
            norms = figures.pop("grad_norm", zeros)
            self._norms = torch.tensor(norms, dtype=torch.float64, device=self.args.device)
            self._rates = figures.pop("rate", zeros)
            for name, values in figures.items():
                self._window[name] += torch.tensor(values, dtype=torch.float64, device=self.args.device)

    def _empty_window(self) -> dict[str, Any]:
        names = ("loss", *self.objective.metrics, "tokens")
        zeros = torch.zeros(len(names), len(self.cells), dtype=torch.float64, device=self.args.device)
        return dict(zip(names, zeros, strict=True)) | {"passes": 0}
