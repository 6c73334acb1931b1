"""The cells of ``plan_error.py``: what is trained to compare a plan with, and the table of what came of
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A line of the table: batches of ``batch`` rows of ``length`` tokens under further ``overrides``.

    Of a cell ``on_cpu`` a length of 0 are the config's own rows, all of them.
    """

    model: str
    base: str
    batch: int
    length: int
    more: str = ""
    overrides: tuple[str, ...] = ()
    cells: int = 1
    on_cpu: bool = False

    @property
    def name(self) -> str:
        """How ``--cells`` and the files call it."""
        model = self.model.removeprefix("qwen3-").removeprefix("smollm2-")
        if not self.length:
            return f"{model}-{self.base}-{self.more}"
        size = f"{model}-{self.base}-{self.batch}x{self.length}"
        return f"{size}-{self.more}" if self.more else size

    def words(self, small: str | None) -> list[str]:
        """The overrides of its config; ``small`` is a model that stands for all, over a plain base."""
        if self.on_cpu:
            sizes = [f"trainer.per_device_train_batch_size={self.batch}"] if self.batch else []
            return [f"model={small or self.model}", *sizes, *self.overrides]
        quantization = "none" if small or self.base == "bf16" else self.base
        return [
            f"model={small or self.model}",
            "model.weights=random",
            f"quantization={quantization}",
            f"trainer.per_device_train_batch_size={self.batch}",
            "plan.check=false",  # what is expected must not decide what is measured
            *self.overrides,
        ]


_CHECKPOINTS, _PLAIN = "trainer.gradient_checkpointing=true", "speed=plain"
_WHOLE, _DPO = ("lora=none", "trainer.learning_rate=1e-5"), ("trainer=dpo", "data=orders-pairs")
CELLS = (
    Cell("qwen3-0.6b", "bf16", 1, 512),
    Cell("qwen3-0.6b", "bf16", 4, 2048),
    Cell("qwen3-0.6b", "bf16", 8, 2048),
    Cell("qwen3-0.6b", "bf16", 8, 2048, "ckpt", (_CHECKPOINTS,)),
    Cell("qwen3-0.6b", "bf16", 4, 2048, "plain", (_PLAIN,)),
    Cell("qwen3-0.6b", "bf16", 4, 1024, "dropout", ("lora.lora_dropout=0.05",)),
    Cell("qwen3-0.6b", "bf16", 2, 1024, "dpo", _DPO),
    Cell("qwen3-0.6b", "bf16", 1, 512, "full", _WHOLE),
    Cell("qwen3-0.6b", "bf16", 2, 2048, "full", _WHOLE),
    Cell("qwen3-0.6b", "bf16", 4, 2048, "full-ckpt", (*_WHOLE, _CHECKPOINTS)),
    Cell("qwen3-1.7b", "nf4", 1, 512),
    Cell("qwen3-1.7b", "nf4", 4, 512),
    Cell("qwen3-1.7b", "nf4", 4, 2048),
    Cell("qwen3-1.7b", "nf4", 4, 2048, "ckpt", (_CHECKPOINTS,)),
    Cell("qwen3-1.7b", "nf4", 4, 512, "plain", (_PLAIN,)),
    Cell("qwen3-1.7b", "bf16", 4, 2048),
    Cell("qwen3-1.7b", "int8", 4, 512),
    Cell("qwen3-1.7b", "fp8", 4, 2048),
    Cell("qwen3-1.7b", "nf4", 1, 512, "pack4", cells=4),
    Cell("qwen3-1.7b", "nf4", 1, 512, "pack16", cells=16),
    Cell("qwen3-4b", "nf4", 1, 512),
    Cell("qwen3-4b", "nf4", 4, 2048),
    Cell("qwen3-4b", "nf4", 4, 2048, "budget", ("speed.activation_memory_budget=0.3",)),
    Cell("qwen3-4b", "nf4", 4, 2048, "plain-ckpt", (_PLAIN, _CHECKPOINTS)),
    Cell("qwen3-4b", "nf4", 2, 1024, "dpo", _DPO),
    Cell("qwen3-4b", "fp8", 4, 2048),
    Cell("qwen3-8b", "bf16", 1, 2048),
    Cell("qwen3-8b", "nf4", 4, 2048),
    Cell("qwen3-8b", "nf4", 8, 2048, "ckpt", (_CHECKPOINTS,)),
)

# Of a machine without a GPU, in the precision that its processor computes in.
CPU_CELLS = (
    Cell("smollm2-135m", "auto", 0, 0, "default", on_cpu=True),
    Cell("smollm2-135m", "auto", 2, 128, on_cpu=True),
    Cell("smollm2-135m", "auto", 2, 512, on_cpu=True),
    Cell("smollm2-135m", "auto", 1, 1024, on_cpu=True),
    Cell("smollm2-135m", "auto", 1, 1024, "ckpt", (_CHECKPOINTS,), on_cpu=True),
    Cell("smollm2-135m", "auto", 2, 512, "plain", (_PLAIN,), on_cpu=True),
    Cell("smollm2-135m", "fp32", 2, 512, "", ("trainer.precision=fp32",), on_cpu=True),
    Cell("smollm2-135m", "auto", 2, 128, "full", _WHOLE, on_cpu=True),
    Cell("smollm2-135m", "auto", 1, 512, "full-ckpt", (*_WHOLE, _CHECKPOINTS), on_cpu=True),
    Cell("smollm2-135m", "auto", 2, 128, "pack4", cells=4, on_cpu=True),
    Cell("tiny", "auto", 8, 512, on_cpu=True),
)


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the cells measured so far, and how many are how near."""
    titles = ["cell", "predicted", "measured", "error", "allocated, error", "step", "predicted", "error"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    errors, problems = [], []
    for name, result in found.items():
        if "error" in result:
            problems.append(f"- {name}: {result['error']}")
            continue
        said, real = result["predicted"], result["measured"]
        error = _error(said["reserved"], real["reserved"])
        errors += [error] if error is not None else []
        allocated = _error(said["allocated"], real["allocated"])
        cells = [
            name,
            gib(said["reserved"]),
            gib(real["reserved"]),
            _percent(error),
            _percent(allocated),
            _ms(real["step_seconds"]),
            _ms(said["step_seconds"]),
            _percent(_error(said["step_seconds"], real["step_seconds"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    near = sum(abs(error) <= 0.1 for error in errors)
    under = sum(error < -0.05 for error in errors)
    what = "resident" if any(name in found for name in (cell.name for cell in CPU_CELLS)) else "reserved"
    lines += ["", f"GiB {what}; {near} of {len(errors)} within 10%, {under} more than 5% under."]
    return "\n".join([*lines, *([""] if problems else []), *problems]) + "\n"


def _error(said: float | None, real: float | None) -> float | None:
    return said / real - 1 if said and real else None


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def gib(size: float | None) -> str:
    """Bytes in GiB; nothing for None."""
    return "" if size is None else f"{size / 2**30:.2f}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:,.0f} ms"
