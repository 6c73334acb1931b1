"""A cell of a pack: as a run, as the trainer keeps it, and the metrics by cell that are read off a pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import get_scheduler

from runner.config.settings import RunConfig
from runner.data.labels import Encoded
from runner.runs.run_folder import RunFolder
from runner.speed.late_log import HostCopy
from runner.speed.token_loss import TokenLogprobs
from runner.training.context import OnLog


@dataclass(frozen=True)
class CellRun:
    """A cell of a sweep that is trained in a pack, as a run: its name, its config and its run folder."""

    name: str
    config: RunConfig
    folder: RunFolder


@dataclass
class CellState:
    """A cell as the trainer keeps it: its own arguments, examples and log, and what is known of it so far.

    ``lines`` counts those of its log. ``moved`` says that a step has changed its adapter,
    ``ended`` why it left the pack before the end.
    ``scores`` are those of the evaluation at step ``measured``, the last one.
    ``held_out_rows`` are of each held-out example the summed loss (nats) and the labelled tokens, of a
    preference pair its loss and 1, as the last evaluation found them.
    """

    name: str
    arguments: Any
    train: Sequence[Encoded]
    held_out: Sequence[Encoded]
    log: OnLog
    lines: Callable[[], int]
    tokens: int = 0
    resumed_tokens: int = 0
    total_loss: float = 0.0
    moved: bool = False
    ended: dict[str, Any] | None = None
    measured: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    held_out_rows: list[tuple[float, int]] = field(default_factory=list)


@dataclass
class LogLine:
    """Metrics [names, cells] of a logged step, being copied to the host, with step, rates and time."""

    names: list[str]
    copy: HostCopy
    rates: list[float]
    facts: dict[str, int]
    epoch: float | None
    seconds: float

    def table(self) -> list[list[float]]:
        """The values, when they have arrived."""
        return self.copy.read().tolist()


def schedule(arguments: Any, steps: int) -> Callable[[int], float]:
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


def keep_groups(optimizer: Any, scheduler: Any, gone: list[Any], chosen: list[int]) -> None:
    """Keep the chosen groups of an optimizer and its schedule; ``gone`` are the parameters of the others."""
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    optimizer.param_groups[:] = [optimizer.param_groups[index] for index in chosen]
    for name in ("lr_lambdas", "base_lrs", "_last_lr"):
        setattr(scheduler, name, [getattr(scheduler, name)[index] for index in chosen])


def log_line(
    line: LogLine, cells: Sequence[CellState], names: Sequence[str], logged: bool
) -> tuple[int, list[float], list[int]]:
    """Count a line in every cell, and give each (if it is ``logged``) the one that its own run would log.

    ``names`` are the metrics beside the loss. Returns the step, the losses of the cells, and the indices of
    those whose loss or gradient norm is not finite, which have ended there.
    """
    metrics = dict(zip(line.names, line.table(), strict=True))
    steps, passes, step = (line.facts[name] for name in ("steps", "passes", "step"))
    lost = []
    for index, cell in enumerate(cells):
        own = {name: values[index] for name, values in metrics.items()}
        cell.tokens += int(own["tokens"])
        cell.total_loss += own["loss"]
        loss, norm = own["loss"] / steps, own["grad_norm"]
        entry = {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": line.rates[index]}
        entry |= {name: own[name] / passes for name in names}
        times = {"epoch": line.epoch, "seconds": line.seconds}
        if logged:
            cell.log({**entry, "num_tokens": cell.tokens, **times})
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss is {loss}" if math.isfinite(norm) else f"gradient norm is {norm}"
            cell.ended = {"status": "diverged", "reason": f"the {what} at step {step}"}
            lost.append(index)
    return step, [value / steps for value in metrics["loss"]], lost


def log_scores(cells: Sequence[CellState], step: int, times: dict[str, Any]) -> list[int]:
    """Give every cell the line of its evaluation after a step.

    Returns the indices of those whose held-out loss is not finite, which have ended there.
    """
    lost = []
    for index, cell in enumerate(cells):
        cell.measured = step
        cell.log({"step": step, **cell.scores, "eval_num_tokens": cell.tokens, **times})
        if not math.isfinite(loss := cell.scores["eval_loss"]):
            cell.ended = {"status": "diverged", "reason": f"the held-out loss after step {step} is {loss}"}
            lost.append(index)
    return lost


def by_cell(values: torch.Tensor, cells: int) -> torch.Tensor:
    """Sums [cells] of values [rows, length], the same number of rows each."""
    return values.reshape(cells, -1).sum(1)


def shares(scores: TokenLogprobs, cells: int) -> dict[str, torch.Tensor]:
    """Each cell's mean entropy and accuracy over its labelled tokens, under TRL's names."""
    counts = by_cell(scores.mask, cells).clamp(min=1)
    columns = {"entropy": scores.entropy, "mean_token_accuracy": scores.is_top1}
    return {name: by_cell(values.detach(), cells) / counts for name, values in columns.items()}
