"""Loss, gradient norm and metrics of a step, read when the next step is under way: none waits for the GPU."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from runner.core.errors import Diverged


@dataclass
class _Line:
    """Values of a step, being copied to the host; ``steps`` since the last logged line, 0 where none is."""

    names: list[str]
    copy: HostCopy
    numbers: dict[str, float]
    step: int
    epoch: float | None
    steps: int
    time: float


class LateLog:
    """The log of a ``GuardedTrainer`` whose steps do not wait for their own numbers.

    What is not finite is found a step late, which changes weights that nobody will see: before a checkpoint
    or an evaluation everything is read. Raises ``Diverged`` then.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._line: _Line | None = None
        self.time: float | None = None  # when the step ended whose line is being logged, else None

    def take(self, norm: Any, rate: float | None) -> None:
        """Read what the step before left, and start to copy what this step leaves.

        ``norm`` is the gradient norm, ``rate`` the learning rate.
        """
        trainer, state = self._trainer, self._trainer.state
        due = trainer.control.should_log and state.global_step > trainer._globalstep_last_logged
        self.read()  # which logs, and so takes back that it is due
        values, numbers = {"loss": trainer._tr_loss}, {}
        if norm is not None:
            values["grad_norm"] = torch.as_tensor(norm, device=trainer._tr_loss.device)
        if due:
            numbers["learning_rate"] = trainer._get_learning_rate() if rate is None else rate
            for name, found in trainer._train_metrics().items():
                mean = sum(found) / len(found)
                (values if isinstance(mean, torch.Tensor) else numbers)[name] = mean
        steps = state.global_step - trainer._globalstep_last_logged if due else 0
        copy = HostCopy(torch.stack([value.detach().double() for value in values.values()]))
        self._line = _Line(
            list(values), copy, numbers, state.global_step, state.epoch, steps, time.monotonic()
        )
        if due:
            trainer._train_metrics().clear()
            trainer._tr_loss = torch.zeros_like(trainer._tr_loss)
            trainer._globalstep_last_logged = state.global_step
            trainer.store_flos()
            trainer.control.should_log = False

    def read(self) -> None:
        """Wait for the values of the last step, check them, and log them where that is due."""
        line, self._line = self._line, None
        if line is None:
            return
        values = dict(zip(line.names, line.copy.read().tolist(), strict=True))
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise Diverged(f"the {_CALLED[name]} of step {line.step} is {values[name]}")
        if not line.steps:
            return
        trainer, state = self._trainer, self._trainer.state
        logs = {"loss": values.pop("loss") / line.steps}
        trainer._total_loss_scalar += logs["loss"] * line.steps
        for name in ("grad_norm", "learning_rate"):
            if name in (found := values if name in values else line.numbers):
                logs[name] = found.pop(name)
        metrics, now = trainer._train_metrics(), (state.global_step, state.epoch)
        since = dict(metrics)
        metrics.clear()
        metrics.update({name: [value] for name, value in {**values, **line.numbers}.items()})
        state.global_step, state.epoch, self.time = line.step, line.epoch, line.time
        try:
            trainer.log(logs)
        finally:
            (state.global_step, state.epoch), self.time = now, None
        metrics.update(since)


_CALLED = {"loss": "loss", "grad_norm": "gradient norm"}


class HostCopy:
    """A copy of a tensor on the host, made while the device goes on with its work."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._arrived = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> torch.Tensor:
        """The values, when they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
