"""What a trainer calls at the begin of training, at each logged step, and at the ends of steps and epochs."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runner.training.context import OnLog


class Report(TrainerCallback):
    """Hands every logged step on."""

    def __init__(self, trainer: Any, on_log: OnLog) -> None:
        self._trainer, self._on_log, self._started = trainer, on_log, time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count seconds from here."""
        self._started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand the line on, with the seconds at which its step ended."""
        late = self._trainer.late_log
        ended = late.time if late and late.time else time.monotonic()
        seconds = round(ended - self._started, 6)
        self._on_log(
            {"step": state.global_step, **(logs or {}), "seconds": seconds, "max_steps": state.max_steps}
        )


class Places(TrainerCallback):
    """Tells the trainer when everything is ready for the first step, and whether it is inside an epoch."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is ready for the first step."""
        self._trainer.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Inside an epoch."""
        self._trainer.resumed.in_epoch = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Between two epochs."""
        self._trainer.resumed.in_epoch = False
