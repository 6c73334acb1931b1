"""A trainer that resumes from a checkpoint: whether training has ended there, and what was still to be done.

The library writes a checkpoint in the middle of what belongs to a step, and takes the next step when it
resumes: what comes behind the checkpoint, an evaluation at the end of an epoch for example, is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from runner.core import signals
from runner.core.errors import RunnerError
from runner.runs import checkpoint


class Resumed:
    """Where a trainer stands between two steps, as the manifests of its checkpoints say it.

    ``start`` is the checkpoint that it resumes from, ``in_epoch`` says that the last step has ended and its
    epoch has not, ``last`` are the gradient norm and the learning rate of the last step. ``caught_up`` is the
    checkpoint that was written when the run had made up for what was due.
    """

    def __init__(self, trainer: Any) -> None:
        """``trainer`` is a ``GuardedTrainer``."""
        self._trainer = trainer
        self.start: str | None = None
        self.in_epoch = False
        self.last: Sequence[Any] = (None, None)
        self.caught_up: str | None = None
        self._postponed = False

    def facts(self) -> dict[str, Any]:
        """The facts in the manifest of the checkpoint that is resumed; empty without one."""
        return checkpoint.facts(Path(self.start)) if self.start else {}

    def due(self) -> dict[str, Any]:
        """What the manifest of a checkpoint that is written now says is still to be done at its step.

        ``stopped``: no step follows. ``epoch_end``: the step was its epoch's last, whose end is to come.
        ``evaluate``: an evaluation was put off by a signal. ``last`` is what a log line of that step needs.
        """
        stopped = bool(self._trainer.control.should_training_stop)
        ends = stopped or float(self._trainer.state.epoch or 0.0).is_integer()
        last = [None if value is None else float(value) for value in self.last]
        due = {"evaluate": self._postponed, "epoch_end": self.in_epoch and ends}
        return {"stopped": stopped, **due, "last": last}

    def postpone_on_signal(self) -> None:
        """When a signal has come, put off the evaluation that is due: a scheduler does not wait for long."""
        control = self._trainer.control
        self._postponed = bool(signals.pending_signal() and control.should_evaluate)
        control.should_evaluate = control.should_evaluate and not self._postponed

    def ended(self) -> bool:
        """Whether no step may follow; which the library asks only after a step."""
        state = self._trainer.state
        return state.global_step >= state.max_steps or self._trainer.control.should_training_stop

    def catch_up(self) -> None:
        """Do what was due at the step of the checkpoint, before the next step."""
        if self.start is None:
            return
        trainer, due = self._trainer, self.facts().get("due") or {}
        control = trainer.control
        trainer.args.eval_on_start = False  # that was at step 0
        control.should_training_stop = bool(due.get("stopped"))
        control.should_log = control.should_evaluate = control.should_save = False
        self.last, self.in_epoch = due.get("last") or (None, None), bool(due.get("epoch_end"))
        best = checkpoint.best_of(Path(self.start))
        if best is not None and best.is_dir():  # the library knows the place where it was written
            trainer.state.best_model_checkpoint = str(best)
        if due.get("evaluate"):
            control.should_evaluate = True
            self._finish_step()
        if due.get("epoch_end"):
            trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, control)
            if control.should_log or control.should_evaluate or control.should_save:
                self._finish_step()
        control.should_log = control.should_evaluate = control.should_save = False

    def _finish_step(self) -> None:
        """What the library does behind a step, and a checkpoint, which holds the random state after it."""
        trainer, (norm, rate) = self._trainer, self.last
        trainer._load_rng_state(self.start)
        trainer.control.should_save, trainer._saved_step = True, 0
        trainer._maybe_log_save_evaluate(
            trainer._tr_loss, norm, trainer.model, None, trainer.state.epoch, None, None, learning_rate=rate
        )
        if trainer._saved_step == 0:  # save_strategy=best, and this was not the best
            trainer.save_checkpoint()
        self.caught_up = str(Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}")


def load_weights(model: Any, folder: Path) -> bool:
    """Give a model of which every weight is trained those of a checkpoint; False for one with an adapter.

    By the names that the library saves them under, which of some kinds (Gemma 3 with its towers, mixtures of
    experts) are not those of the modules: its trainer would look for these, and go on with the weights that
    are there without a word. Raises ``RunnerError`` where a weight is missing.
    """
    if isinstance(model, PeftModel):
        return False
    options = {"config": model.config, "dtype": model.dtype, "output_loading_info": True}
    saved, found = type(model).from_pretrained(folder, **options)
    if lacking := sorted(found["missing_keys"]):
        raise RunnerError(f"{folder} lacks {len(lacking)} of the model's weights, {lacking[0]} among them")
    model.load_state_dict(saved.state_dict())
    return True
