"""The evaluation of every trainer: the library's loop, with means that no batch size changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runner.core.errors import Diverged
from runner.parallel.trainer import SharedTrainer
from runner.training.context import TrainerContext
from runner.training.means import WeightedMeans, joined
from runner.training.out_of_memory import free_memory, is_out_of_memory


class EvaluatingTrainer(SharedTrainer):
    """Held-out loss and metrics as means over loss tokens or over rows, whatever the batches are.

    ``eval_weights`` says what each metric of a batch is a mean over. The library takes the plain mean over
    batches (its losses weighted by rows): 6.2278 or 6.2070 for the same adapter and rows.
    """

    _context: TrainerContext
    _means: WeightedMeans

    def eval_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """By metric what its mean over this batch is taken over; ``""`` for all others: the rows."""
        return {"": len(inputs["input_ids"])}

    def eval_parts(self, loss: float, metrics: dict[str, float]) -> dict[str, float]:
        """What is averaged: the loss of a batch and its metrics."""
        return {"loss": loss, **metrics}

    def eval_result(self, means: dict[str, float]) -> dict[str, float]:
        """The loss and the metrics from the means of their parts."""
        return means

    def eval_metrics(self) -> dict[str, list[float]]:
        """Where TRL collects the metrics of an evaluation, a value a batch."""
        return getattr(self, "_metrics", {}).get("eval", {})

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One batch of an evaluation, added to the means."""
        self.eval_metrics().clear()
        idle = self.eval_is_idle()
        found: Any = super().prediction_step(model, inputs, *args, **kwargs)
        metrics = {name: float(values[-1]) for name, values in self.eval_metrics().items() if values}
        if not idle:
            self._means.add(self.eval_parts(float(found[0]), metrics), self.eval_weights(inputs))
        return found

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the library's, which logs and compares what is returned, with our means in its place.

        Raises ``Diverged`` when the loss is not finite; other metrics may be means over nothing.
        """
        self._means = WeightedMeans()
        self.begin_evaluation()
        with self._plain_loss():
            output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self.eval_result(joined(self.group.gather(self._means)).means())
        output.metrics[f"{metric_key_prefix}_loss"] = loss = means.pop("loss")
        if not math.isfinite(loss):  # finite weights may be too large to compute with
            raise Diverged(f"the held-out loss after step {self.state.global_step} is {loss}")
        self.eval_metrics().clear()
        self.eval_metrics().update({name: [value] for name, value in means.items()})
        return output

    @contextmanager
    def _plain_loss(self) -> Iterator[None]:
        """Leave out what is added to the loss in training: how evenly a batch uses the experts is no property
        of its rows, nor how near to orthogonal AdaLoRA's vectors are."""
        balanced = getattr(self, "aux_loss_enabled", False)
        adapters = getattr(self.model, "peft_config", {}).values()
        weights = [(each, each.orth_reg_weight) for each in adapters if hasattr(each, "orth_reg_weight")]
        if balanced:
            self.aux_loss_enabled = False
        for adapter, _ in weights:
            adapter.orth_reg_weight = 0.0
        try:
            yield
        finally:
            if balanced:
                self.aux_loss_enabled = True
            for adapter, weight in weights:
                adapter.orth_reg_weight = weight

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the library does it; with ``on_oom=shrink``, in smaller batches when memory runs out."""
        on_shrink: Callable[[str], None] | None = self._context.on_shrink
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
