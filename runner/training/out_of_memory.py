"""When memory runs out: what to change, and with ``on_oom=shrink`` smaller batches, the same rows a step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from runner.config.settings import RunConfig
from runner.core.errors import RunnerError

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
    fitting = next((size for size in range(batch // 2, 0, -1) if batch % size == 0), 0)
    return (fitting, passes * batch // fitting) if fitting else (0, 0)


def train_shrinking(
    build: Callable[[], Any],
    arguments: Any,
    checkpoint: str | None,
    on_shrink: Callable[[str], None] | None,
) -> tuple[Any, Any]:
    """Train with the ``GuardedTrainer`` that ``build`` makes of ``arguments``; returns it and its result.

    With ``on_shrink``, which is told so, a step that runs out of memory leaves a checkpoint of the one before
    it, from which a new trainer goes on with a smaller batch and more passes.
    """
    while True:
        trainer = build()
        try:
            return trainer, trainer.train(resume_from_checkpoint=checkpoint)
        except Exception as error:
            batch, passes = smaller(
                arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
            )
            if not (on_shrink and batch and is_out_of_memory(error)):
                raise
        # outside of the handler, whose traceback holds the tensors of the step
        step = trainer.state.global_step
        trainer.model.zero_grad(set_to_none=True)
        free_memory()
        if step:
            checkpoint = str(trainer.leave_checkpoint())
        on_shrink(f"out of memory in step {step + 1}: {batch} rows in {passes} passes a step from here on")
        arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = batch, passes
        del trainer
        free_memory()


def free_memory() -> None:
    """Give back what nobody refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
