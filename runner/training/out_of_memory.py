"""When memory runs out: what to change, and with ``on_oom=shrink`` smaller batches, the same rows a step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runner.config.settings import RunConfig
from runner.core.errors import RunnerError
from runner.runs.resume import Start

_ON_A_CPU = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate")


class OutOfMemory(RunnerError):
    """The device, or the machine, had no memory left. Says what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out, on a GPU or beside it."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ON_A_CPU)


def explained(error: Exception, config: RunConfig) -> Exception:
    """``OutOfMemory`` for an error that means so, with what this config can change; others as they are."""
    if not is_out_of_memory(error):
        return error
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    found = OutOfMemory(f"out of memory: {reason}\n  to need less: {'; '.join(_advice(config))}")
    found.__cause__ = error
    return found


def _advice(config: RunConfig) -> list[str]:
    """What of the config costs memory, as overrides that cost less; the cheapest change first."""
    trainer, advice = config.trainer, []
    batch, passes = smaller(
        trainer.get("per_device_train_batch_size", 1), trainer.get("gradient_accumulation_steps", 1)
    )
    if batch:
        same = f"trainer.per_device_train_batch_size={batch} trainer.gradient_accumulation_steps={passes}"
        advice.append(f"{same} (the same rows a step)")
        if config.on_oom is None:
            advice.append("on_oom=shrink (which does that by itself)")
    if trainer and not trainer.get("gradient_checkpointing"):
        advice.append("trainer.gradient_checkpointing=true (slower)")
    if not config.quantization.get("_target_"):
        advice.append("quantization=nf4")
    length = trainer.get("max_length")
    if length and length > 256:
        advice.append(f"trainer.max_length={length // 2} (cuts longer rows)")
    return advice or ["a smaller model, or a device with more memory"]


def smaller(batch: int, passes: int) -> tuple[int, int]:
    """The next smaller batch with more passes for the same rows a step; (0, 0) when there is none."""
    size = next((part for part in range(batch // 2, 0, -1) if batch % part == 0), 0)
    return (size, passes * batch // size) if size else (0, 0)


class BatchShrinker:
    """``on_oom=shrink``: a training that runs out of memory is tried again with a smaller batch.

    The step that ran out of memory leaves a checkpoint of the step before it, from which a new trainer
    resumes with a smaller batch and more passes, so that a step still has the same examples. ``checkpoint``
    is where the next attempt begins (None: at step 0). Without ``on_shrink``, which is called
    with a warning for each change, errors are raised.
    """

    def __init__(self, arguments: Any, start: Start, on_shrink: Callable[[str], None] | None) -> None:
        """``arguments`` get the batch of the checkpoint in ``start``: an earlier start may have shrunk it."""
        self._arguments, self._on_shrink = arguments, on_shrink
        self.checkpoint = str(start.checkpoint) if start.checkpoint else None
        for name, size in start.facts.get("batch", {}).items():
            setattr(arguments, name, size)

    @contextmanager
    def attempt(self, trainer: Any) -> Iterator[None]:
        """In this block ``trainer`` trains; if memory runs out, the block ends and the arguments have
        changed."""
        try:
            yield
        except Exception as error:
            batch, passes = smaller(
                self._arguments.per_device_train_batch_size, self._arguments.gradient_accumulation_steps
            )
            if not (self._on_shrink and batch and is_out_of_memory(error)):
                raise
        else:
            return
        # outside of the handler, whose traceback holds the tensors of the step
        step = trainer.state.global_step
        trainer.model.zero_grad(set_to_none=True)
        if trainer.decoder is not None:
            trainer.decoder.forget()
        free_memory()
        if step:
            self.checkpoint = str(trainer.leave_checkpoint())
        trainer.optimizer.state.clear()  # the caller still holds this trainer while the next one is built
        free_memory()
        self._on_shrink(
            f"out of memory in step {step + 1}: {batch} rows in {passes} passes a step from here on"
        )
        self._arguments.per_device_train_batch_size = batch
        self._arguments.gradient_accumulation_steps = passes


def free_memory() -> None:
    """Give back what nobody refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
