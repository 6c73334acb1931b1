"""What a training run is expected to take: said in its opening, recorded, and refused where it cannot fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.config.objective import Objective
from runner.config.recipes.cards import Card
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.plan.estimate import Case, make_case
from runner.plan.families import from_facts
from runner.plan.fit import best_setting
from runner.plan.memory import GIB, Memory, StepMemory
from runner.plan.step import Step, step_of
from runner.plan.time import duration
from runner.speed.pieces import Pieces, bucket

# Of what is counted for the refusal of a run, the share that must be free. It is a lower bound as it is (no
# logits, no gradients, no gaps), and with this a sum that is a tenth too large refuses nothing that fits.
_SURE = 0.9
_COUNTED = ("base", "adapter", "optimizer", "activations")
# Formats of a base whose size is known, which those of other quantised checkpoints are not.
_FORMATS = ("", "nf4", "fp4", "int8", "fp8")
# What moves tensors off the device, or over several, and is not in the formulas.
_MOVES = ("activation_offloading", "fsdp", "deepspeed")


@dataclass(frozen=True)
class Rows:
    """The rows of a run: how many, the tokens of the longest sequence and of a mean one, and the share of
    tokens that have a loss."""

    count: int
    longest: int
    mean: float
    labelled: float = 1.0


@dataclass(frozen=True)
class Expected:
    """What a run is expected to take: ``peak`` are bytes that torch holds of a GPU, or that the process has;
    ``seconds`` those of all steps, None where they are not known. Both are estimates, of training alone:
    answers and scores before and after it may take more of a GPU than a small batch does."""

    case: Case
    step: Step
    rows: Rows
    memory: Memory
    peak: int
    seconds: float | None

    def line(self) -> str:
        """One line for people."""
        time = f", {duration_text(self.seconds)} of training" if self.seconds is not None else ""
        what = "at the peak" if self.step.on_cuda else "of memory at the peak"
        return f"about {gib(self.peak)} GiB {what}{time} (estimates)"

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {"peak_bytes": self.peak, "seconds": self.seconds}

    def check_fits(self, free: int) -> None:
        """Raise ``ConfigError``, with the nearest settings that fit, where a step cannot fit ``free`` bytes
        of the GPU."""
        config = self.case.config
        if config.model.device_map or any(config.trainer.get(key) for key in _MOVES):
            return
        batch = 1 if config.on_oom == "shrink" else self.step.batch
        parts = dict(self._at(batch, uneven=True).parts)
        if self.step.optimizer.startswith("paged_"):  # which may stand in the memory of the machine
            parts.pop("optimizer", None)
        need = sum(parts.get(kind, 0) for kind in _COUNTED)
        if _SURE * need <= free:
            return
        setting = best_setting(self.case, Card("", free))
        fits = "shorter rows or a smaller model"
        if setting is not None and setting.overrides:
            fits = " ".join(f"{key}={value}" for key, value in setting.overrides.items())
        message = f"a step takes at least {gib(need)} GiB, and {gib(free)} GiB of the GPU are free"
        raise ConfigError(Issue("GPU memory", message, f"{fits}; or plan.check=false tries it as it is"))

    def _at(self, batch: int, uneven: bool) -> Memory:
        return _memory(self.case, self.step, self.rows, batch, uneven)


def expected(
    config: RunConfig,
    objective: Objective,
    facts: Mapping[str, Any],
    step: tuple[str, Pieces],
    rows: Rows,
    steps: int,
    classes: int | None,
    card: Card | None,
    there: int = 0,
) -> Expected | None:
    """What a run will take, by the ``facts`` of its model's config.json; None where these do not tell.

    ``step`` are its precision and pieces, ``steps`` those of the optimizer, ``classes`` the outputs of a new
    head. ``card`` is the CUDA device, None for others, where the process already has ``there`` bytes.
    """
    architecture = from_facts(facts)
    if architecture is None or config.adapter:  # an adapter that is trained further has its own shape
        return None
    try:
        case = make_case(config, objective, config.recipe, architecture, rows.longest, (), 1.0, classes)
    except ConfigError:  # an adapter that only PEFT knows the tensors of
        return None
    case = dataclasses.replace(case, labelled=rows.labelled)
    precision, pieces = step
    how = step_of(
        *(config, objective, config.recipe, case.architecture, case.trained, precision, card is not None)
    )
    if how.quantization not in _FORMATS:
        return None
    how = dataclasses.replace(how, pieces=pieces)
    memory = _memory(case, how, rows, how.batch, pieces.padding_free)
    peak = memory.reserved if card is not None else there + memory.total
    seconds = None
    if card is not None:
        lengths = [round(rows.mean)] * (how.batch * how.sequences)
        labelled = round(sum(lengths) * rows.labelled)
        time = duration(case.architecture, case.trained, how, card, lengths, labelled)
        seconds = round(steps * time.step, 1) if time else None
    return Expected(case, how, rows, memory, peak, seconds)


def _memory(case: Case, step: Step, rows: Rows, batch: int, uneven: bool) -> Memory:
    """The memory of the pass with the longest row, beside which others are as long, or ``uneven``."""
    batch = max(1, min(batch, rows.count))
    others = rows.mean if uneven else rows.longest
    tokens = rows.longest + (batch - 1) * others
    if step.pieces.cuda_graphs:  # filled up, for few graphs to serve all lengths
        tokens = max(tokens, bucket(round(tokens)))
    quantization = case.config.quantization or case.architecture.quantization
    padded = batch > 1 and rows.mean < rows.longest and not uneven
    total = round(tokens) * step.sequences
    found = StepMemory(case.architecture, case.trained, step, quantization, padded)
    return found.at(total, round(total * rows.labelled))


def gib(size: float) -> str:
    """A size in GiB, without the unit."""
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.2f}"


def duration_text(seconds: float) -> str:
    """Seconds in a unit that reads well."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
