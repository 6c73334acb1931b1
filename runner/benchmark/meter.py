"""Times, memory and tokens of a trainer's steps, taken from outside of any trainer of transformers.

The steps are measured first, with a mark at the end of each and nothing else. The steps behind them are
measured again in parts, by marks around the trainer's own methods. A mark is the host's time and, on CUDA, an
event in the current stream, so that nothing waits for the GPU; events are read when training has ended.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil
import torch
from transformers import TrainerCallback

from runner.benchmark.flops import model_size
from runner.core import environment
from runner.plan.flops import step_flops

SPLIT_STEPS = 4  # steps behind the measured ones whose parts are timed
_TOKENS = ("input_ids", "attention_mask", "labels", "completion_mask", "position_ids")


class Mark(NamedTuple):
    """A moment: of the host (seconds), and in the GPU's stream where there is one."""

    host: float
    event: Any = None


class Span(NamedTuple):
    """A part of a step between two moments."""

    phase: str
    first: Mark
    last: Mark


class Meter(TrainerCallback):
    """Measures ``steps`` optimizer steps behind ``warmup`` ones, and ``SPLIT_STEPS`` more in parts.

    ``reference`` says that each step has a forward pass of a reference policy besides. ``left_out`` are
    seconds of this process that are no part of its start-up.
    """

    def __init__(self, warmup: int, steps: int, reference: bool = False, left_out: float = 0.0) -> None:
        self._warmup, self._steps, self._reference = warmup, steps, reference
        self._left_out = left_out
        self._cuda = torch.cuda.is_available()
        self._ends: dict[int, Mark] = {}
        self._batches: dict[int, list[dict[str, torch.Tensor]]] = {}
        self._spans: list[Span] = []
        self._splitting = False
        self._peaks: dict[str, int] = {}
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Wrap the methods of a trainer that make up a step."""
        self._trainer = trainer
        trainer.add_callback(self)
        self._time(trainer, "get_batch_samples", "data")
        self._keep_batches(trainer)
        self._time(trainer, "training_step", "step")
        self._time(trainer, "compute_loss", "forward")
        self._time(trainer.accelerator, "backward", "backward")
        self._time(trainer.accelerator, "clip_grad_norm_", "optimizer")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Time the optimizer, which is made by now; count memory from here on, without that of loading."""
        self._time(kwargs["optimizer"], "step", "optimizer")
        if self._cuda:
            self._peaks["load_allocated_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the end of a step."""
        self._ends[state.global_step] = self._mark()
        if state.global_step == self._warmup + self._steps:
            self._peaks |= self._memory()
            self._splitting = True

    def result(self) -> dict[str, Any]:
        """What was measured, once training has ended.

        Seconds, tokens and operations of each measured step; the mean parts of a step in milliseconds, in
        ``device`` and ``host`` time; peaks in bytes; seconds from the start of the process to a steady step.
        """
        if self._cuda:
            torch.cuda.synchronize()
        last, now = self._mark(), time.time()
        if self._cuda:
            torch.cuda.synchronize()
        first = self._ends[self._warmup]
        began = psutil.Process().create_time()
        numbers = range(self._warmup + 1, self._warmup + self._steps + 1)
        counts = [self._counted(number) for number in numbers]
        return {
            "step_seconds": [seconds(self._ends[number - 1], self._ends[number]) for number in numbers],
            **{key: [count[key] for count in counts] for key in counts[0]},
            "split_ms": {"device": self._split(seconds), "host": self._split(host_seconds)},
            "startup_seconds": now - began - seconds(first, last) - self._left_out,
            **self._peaks,
        }

    def _mark(self) -> Mark:
        event = None
        if self._cuda and not torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return Mark(time.perf_counter(), event)

    def _time(self, owner: Any, name: str, phase: str) -> None:
        """Put marks around a method of one object, while the parts of steps are timed."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._splitting:
                return method(*args, **kwargs)
            first = self._mark()
            try:
                return method(*args, **kwargs)
            finally:
                self._spans.append(Span(phase, first, self._mark()))

        setattr(owner, name, timed)

    def _keep_batches(self, trainer: Any) -> None:
        """Keep the token tensors of the measured steps; they are counted afterwards, as that waits for the
        GPU."""
        method = trainer.get_batch_samples

        @functools.wraps(method)
        def kept(*args: Any, **kwargs: Any) -> Any:
            batches, items = method(*args, **kwargs)
            number = trainer.state.global_step + 1
            if batches and self._warmup < number <= self._warmup + self._steps:
                self._batches[number] = [
                    {key: value for key, value in batch.items() if key.endswith(_TOKENS)} for batch in batches
                ]
            return batches, items

        trainer.get_batch_samples = kept

    def _counted(self, number: int) -> dict[str, Any]:
        """Real tokens, tokens with padding, labelled tokens and operations of a step."""
        tokenizer = self._trainer.processing_class
        lengths: list[int] = []
        padded = labelled = 0
        for batch in self._batches.pop(number):
            found = count_tokens(batch, tokenizer.pad_token_id)
            lengths += found[0]
            padded, labelled = padded + found[1], labelled + found[2]
        size = model_size(self._trainer.model)
        flops = step_flops(size, lengths, labelled, self._reference) if size else None
        return {"tokens": sum(lengths), "padded_tokens": padded, "labelled_tokens": labelled, "flops": flops}

    def _memory(self) -> dict[str, int]:
        """The most that was taken so far; of a CUDA graph's pool, only ``reserved`` knows."""
        if not self._cuda:
            return {"peak_rss_bytes": environment.peak_memory()}
        return {
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        }

    def _split(self, between: Any) -> dict[str, float]:
        end = self._warmup + self._steps
        total = between(self._ends[end], self._ends[max(self._ends)])
        parts = split([(span.phase, between(span.first, span.last)) for span in self._spans], total)
        steps = max(self._ends) - end
        return {name: round(1000 * value / steps, 3) for name, value in parts.items()}


def seconds(first: Mark, last: Mark) -> float:
    """Seconds between two moments: of the GPU's stream where both are in it, of the host elsewhere."""
    if first.event is None or last.event is None:
        return host_seconds(first, last)
    return first.event.elapsed_time(last.event) / 1000


def host_seconds(first: Mark, last: Mark) -> float:
    """Seconds of the host between two moments."""
    return last.host - first.host


def split(spans: list[tuple[str, float]], total: float) -> dict[str, float]:
    """Seconds of ``total`` by part: data, forward, backward, optimizer, and the rest, gaps.

    ``step`` is what contains forward and backward; where it was called without them, as when a CUDA graph
    replays all of it, its time is ``graph``.
    """
    sums: dict[str, float] = dict.fromkeys(("data", "forward", "backward", "optimizer", "step"), 0.0)
    for phase, duration in spans:
        sums[phase] += duration
    step = sums.pop("step")
    if not any(phase in ("forward", "backward") for phase, _ in spans):
        sums["graph"] = step
    return {**sums, "gaps": max(0.0, total - sum(sums.values()))}


def count_tokens(batch: Mapping[str, torch.Tensor], pad: int) -> tuple[list[int], int, int]:
    """The tokens of each row of a batch without padding, all with padding, and those that have a loss.

    A batch has several groups of sequences where its keys have prefixes (``KL_completion_input_ids``).
    """
    lengths: list[int] = []
    padded = labelled = 0
    for key, ids in batch.items():
        if not key.endswith("input_ids"):
            continue
        group = {name: batch.get(key.removesuffix("input_ids") + name) for name in _TOKENS}
        lengths += _lengths(ids, group, pad)
        padded += ids.numel()
        labels, mask = group["labels"], group["completion_mask"]
        if labels is not None and labels.shape == ids.shape:
            labelled += int((labels[:, 1:] != -100).sum())
        elif mask is not None:
            labelled += int(mask[:, 1:].sum())
    return lengths, padded, labelled


def _lengths(ids: torch.Tensor, group: Mapping[str, torch.Tensor | None], pad: int) -> list[int]:
    mask, positions, labels = (group[name] for name in ("attention_mask", "position_ids", "labels"))
    if mask is not None:
        return mask.sum(1).tolist()
    if positions is not None:  # rows side by side, each from position 0
        begins = (positions.flatten() == 0).nonzero().flatten().tolist()
        return [end - begin for begin, end in zip(begins, [*begins[1:], ids.numel()], strict=True)]
    real = ids != pad
    if labels is not None and labels.shape == ids.shape:
        real |= labels != -100  # an end token that pads, too
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return (real * places).amax(1).tolist()
