"""What a training run is expected to take: said in its opening, recorded, and refused where it cannot fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from runner.config.objective import Objective
from runner.config.recipes.cards import Card
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError, Issue
from runner.plan.architecture import Architecture
from runner.plan.estimate import Case, make_case
from runner.plan.fit import best_setting, command
from runner.plan.memory import GIB, Memory, StepMemory
from runner.plan.packs import bytes_of_a_cell, cells_in_a_pass
from runner.plan.step import Step, step_of
from runner.plan.time import duration
from runner.plan.trained import PLAIN_LORA
from runner.speed.pieces import Pieces, bucket

# Of what is counted for the refusal of a run, the share that must be free. It is a lower bound as it is (no
# logits, no gradients, no gaps), and with this a sum that is a tenth too large refuses nothing that fits.
_SURE = 0.9
_COUNTED = ("base", "adapter", "optimizer", "activations")
_ON_CPU = 0.8  # of padded rows' tokens: rows stand side by side where it is less (runner.speed.decoder)
# Formats of a base whose size is known, which those of other quantised checkpoints are not.
_FORMATS = ("", "nf4", "fp4", "int8", "fp8")
# What moves tensors off the device, or over several, and is not in the formulas.
_MOVES = ("activation_offloading", "fsdp", "deepspeed")


@dataclass(frozen=True)
class Rows:
    """The rows of a run: how many, the tokens of the longest sequence and of a mean one, and the share of
    tokens that have a loss. Of rows that have not been read (``known``) the first three are bounds."""

    count: int
    longest: int
    mean: float
    labelled: float = 1.0
    known: bool = True


@dataclass(frozen=True)
class Place:
    """Where a run is trained: the CUDA device, None for others, and its ``free`` bytes; and those that the
    process already ``has``, which count where it shares the memory of the device. ``native`` is the precision
    that ``auto`` is there."""

    card: Card | None
    free: int
    has: int = 0
    native: str = "bf16"

    @property
    def name(self) -> str:
        """For people."""
        return self.card.name if self.card else "a CPU"


@dataclass(frozen=True)
class Expected:
    """What a run is expected to take: ``peak`` are bytes that torch holds of a GPU, or that a process has;
    ``step_seconds`` those of an optimizer step, None where they are not known, ``seconds`` those of all
    steps. All are estimates, of training alone: answers and scores before and after it may take more of a GPU
    than a small batch does. Of a pack, ``cells_per_pass`` cells share a pass."""

    case: Case
    step: Step
    rows: Rows
    place: Place
    memory: Memory
    peak: int
    step_seconds: float | None
    seconds: float | None
    cells_per_pass: int = 1

    @property
    def needed(self) -> int:
        """Bytes that must be free: of a GPU with CUDA's context; elsewhere of all processes of the run, which
        share one memory."""
        return self.memory.total if self.step.on_cuda else self.peak * self.step.processes

    def line(self, needed: bool = False) -> str:
        """One line for people; of a GPU what torch will hold, or all that is ``needed``."""
        time = f", {duration_text(self.seconds)} of training" if self.seconds is not None else ""
        several = self.step.processes > 1
        if self.step.on_cuda:
            size = self.needed if needed else self.peak
            what = "at the peak" + (" of each GPU" if several else "")
            what += ", CUDA's context included" if needed else ""
        else:
            size = self.needed
            what = "of memory at the peak" + (f" of {self.step.processes} processes" if several else "")
        most = "about" if self.rows.known else "up to"
        return f"{most} {gib(size)} GiB {what}{time} (estimates)"

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of it; ``peak_bytes`` are those of each of ``processes``, as the measured
        ones are."""
        each = {"processes": self.step.processes} if self.step.processes > 1 else {}
        allocated = {"allocated_bytes": self.memory.allocated} if self.step.on_cuda else {}
        pack = {"cells_per_pass": self.cells_per_pass} if self.step.cells > 1 else {}
        times = {"step_seconds": self.step_seconds, "seconds": self.seconds}
        return {"peak_bytes": self.peak, **each, **allocated, **times, **pack}

    def check_fits(self, typed: Sequence[str] | None = None) -> None:
        """Raise ``ConfigError`` for a ``misfit``, unless ``plan.check=false``."""
        if self.case.config.plan.check and (issue := self.misfit(typed)):
            raise ConfigError(issue)

    def misfit(self, typed: Sequence[str] | None = None) -> Issue | None:
        """An issue where a GPU cannot compute a step, or not in the memory that is free, with the nearest
        settings that fit; or with the whole command that has them, for the overrides that were ``typed``."""
        config, free = self.case.config, self.place.free
        # what this machine lacks is said where its base is checked
        if self.place.card and (lacking := self.step.lacking(self.place.card)):
            message = f"{self.place.name} has no {lacking}"
            return Issue(f"quantization={self.step.quantization}", message, "quantization=nf4, int8 or none")
        if not self.step.on_cuda or config.model.device_map:
            return None
        if any(config.trainer.get(key) for key in _MOVES):
            return None
        need = self._least()
        if _SURE * need <= free:
            return None
        waiting = (self.step.cells - 1) * bytes_of_a_cell(self.memory, self.step.cells)
        setting = best_setting(self.case, Card("", max(0, free - waiting)))
        fits = "shorter rows or a smaller model"
        if setting is not None and setting.overrides:
            words = " ".join(f"{key}={value}" for key, value in setting.overrides.items())
            fits = words if typed is None else str(command(typed, config.recipe, setting))
        message = f"a step takes at least {gib(need)} GiB, and {gib(free)} GiB of the GPU are free"
        return Issue("GPU memory", message, f"{fits}; or plan.check=false tries it as it is")

    def _least(self) -> int:
        """Bytes that no batch, and no part of a pack, can do with less than."""
        batch = 1 if self.case.config.on_oom == "shrink" else self.step.batch
        parts = dict(_memory(self.case, self.step, self.rows, batch, uneven=True).parts)
        if self.step.optimizer.startswith("paged_"):  # which may stand in the memory of the machine
            parts.pop("optimizer", None)
        if not (self.rows.known and self.case.architecture.exact):
            parts.pop("activations", None)
        return sum(parts.get(kind, 0) for kind in _COUNTED)


def expected(
    config: RunConfig,
    objective: Objective,
    architecture: Architecture,
    rows: Rows,
    place: Place,
    step: tuple[str, Pieces] | None = None,
    steps: int | None = None,
    classes: int | None = None,
    cells: tuple[int, int | None] = (1, None),
) -> Expected | None:
    """What a run will take; None where its config does not tell.

    ``step`` are its precision and pieces, where it is known that they are not the config's own, ``steps``
    those of the optimizer, ``classes`` the outputs of a new head. ``cells`` are those of a pack, of which
    ``config`` is ``runner.plan.packs.widest``, and how many may share a pass.
    """
    if config.adapter and config.lora.get("_target_") != PLAIN_LORA:  # its shape is not in the config
        return None
    try:
        case = make_case(config, objective, config.recipe, architecture, rows.longest, (), 1.0, classes)
    except ConfigError:  # an adapter that only PEFT knows the tensors of
        return None
    case = dataclasses.replace(case, labelled=rows.labelled)
    how = _step(case, place, step, cells[0])
    if how.quantization not in _FORMATS:
        return None

    def of_pass(count: int) -> Memory:  # all rows as long as the longest: what is chosen here must fit
        return _memory(case, how, rows, how.batch, False, count)

    count = cells_in_a_pass(of_pass, *cells, place.free) if cells[0] > 1 else 1
    passes = how.accumulation * (steps or -(-rows.count // how.batch))
    memory = _memory(case, how, rows, how.batch, how.pieces.padding_free, count, passes)
    peak = memory.reserved if how.on_cuda else place.has + memory.total
    one = _seconds(case, how, rows, place.card, count)
    every = round(steps * one, 3) if steps and one else None
    return Expected(case, how, rows, place, memory, peak, one, every, count)


def _step(case: Case, place: Place, known: tuple[str, Pieces] | None, cells: int) -> Step:
    """How the step of a case is computed at a place."""
    on_cuda = place.card is not None
    native = known[0] if known else place.native
    found = step_of(
        *(case.config, case.objective, case.recipe, case.architecture, case.trained, native, on_cuda)
    )
    found = dataclasses.replace(found, pieces=known[1]) if known else found
    # what a reference says of the rows of a pack is computed once, beforehand
    return dataclasses.replace(found, cells=cells, reference=False) if cells > 1 else found


def _seconds(case: Case, step: Step, rows: Rows, card: Card | None, cells_per_pass: int) -> float | None:
    """Seconds of an optimizer step, in as many passes as the cells of a pack need."""
    if card is None:
        return None
    whole, rest = divmod(step.cells, cells_per_pass)
    total = 0.0
    for passes, count in ((whole, cells_per_pass), (1, rest)):
        if count:
            lengths = [round(rows.mean)] * (step.batch * step.sequences * count)
            labelled = round(sum(lengths) * rows.labelled)
            time = duration(case.architecture, case.trained, step, card, lengths, labelled)
            if time is None:
                return None
            total += passes * time.step
    return total


def _memory(
    case: Case, step: Step, rows: Rows, batch: int, uneven: bool, cells: int = 1, passes: int = 1
) -> Memory:
    """The memory of the pass with the longest row of each of ``cells``, beside which others are as long, or
    ``uneven``; one of a run of ``passes``."""
    batch = max(1, min(batch, rows.count))
    tokens = all_padded = batch * rows.longest
    beside = rows.longest + (batch - 1) * rows.mean
    if uneven and (step.on_cuda or beside < _ON_CPU * all_padded):
        tokens = beside
    if step.pieces.cuda_graphs:  # filled up, for few graphs to serve all lengths
        tokens = max(tokens, bucket(round(tokens)))
    quantization = case.config.quantization or case.architecture.quantization
    padded = batch > 1 and rows.mean < rows.longest and not uneven
    total = round(tokens) * step.sequences * cells
    found = StepMemory(case.architecture, case.trained, step, quantization, padded, rows.longest)
    return found.at(total, round(total * rows.labelled), _shapes(rows, passes))


def _shapes(rows: Rows, passes: int) -> int:
    """How many shapes the batches of a run have, whose rows are padded to the longest: about those found in
    as many draws from 1.4 times what the longest row has more than a mean one (14 in 20 of the default
    job's, 24 in 40, 36 in 80, 44 in 240)."""
    spread = 1.4 * (rows.longest - rows.mean)
    return max(1, round(spread * (1 - exp(-passes / spread)))) if spread > 1 else 1


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
