"""A training config on a card: its memory, its time, and how far its batch could grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from runner.config.objective import Objective
from runner.config.recipes.cards import Card
from runner.config.settings import RunConfig
from runner.parallel.processes import planned_shares
from runner.plan.architecture import Architecture
from runner.plan.memory import Memory, StepMemory
from runner.plan.step import Step, step_of
from runner.plan.time import Duration, duration
from runner.plan.trained import Trained, trained, with_score
from runner.speed.pieces import bucket

_MOST = 4096  # rows: no batch that anyone would want is larger


@dataclass(frozen=True)
class Case:
    """A training config with the architecture of its model.

    ``length`` are the tokens of the longest row, ``lengths`` those of the rows of the data (empty where they
    are not known), ``labelled`` the share of tokens that have a loss.
    """

    config: RunConfig
    objective: Objective
    recipe: str
    architecture: Architecture
    trained: Trained
    length: int
    lengths: tuple[int, ...] = ()
    labelled: float = 1.0
    _memories: dict[Any, StepMemory] = field(default_factory=dict, init=False, compare=False, repr=False)
    _steps: dict[str, Step] = field(default_factory=dict, init=False, compare=False, repr=False)

    def changed(self, **trainer: Any) -> Case:
        """The case with other values in ``trainer``."""
        config = dataclasses.replace(self.config, trainer={**self.config.trainer, **trainer})
        return dataclasses.replace(self, config=config)

    def quantized(self, quantization: dict[str, Any]) -> Case:
        """The case over another base."""
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, quantization=dict(quantization))
        )

    def budgeted(self, budget: float) -> Case:
        """The case with a share of the activations kept."""
        speed = dataclasses.replace(self.config.speed, activation_memory_budget=budget)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, speed=speed))

    def step(self, card: Card | None = None) -> Step:
        """How a step is computed on a card."""
        native = "bf16" if card is None or card.bf16 else "fp16"
        if native not in self._steps:
            self._steps[native] = self._step(native)
        return self._steps[native]

    def _step(self, native: str) -> Step:
        found = step_of(self.config, self.objective, self.recipe, self.architecture, self.trained, native)
        return dataclasses.replace(found, cells=self.config.plan.cells)

    def memory(self, card: Card | None = None, rows: int | None = None, length: int | None = None) -> Memory:
        """The memory of a step whose rows all have a length, by default the longest."""
        step = self.step(card)
        rows = rows or step.batch
        length = length or self.length
        if step.pieces.cuda_graphs:  # rows are filled up, for few graphs to serve all lengths
            length = max(length, min(bucket(length), self.architecture.positions))
        tokens = rows * length * step.sequences * step.cells
        padded = bool(self.lengths) and rows > 1
        key = (step.precision, padded)
        if key not in self._memories:
            quantization = self.config.quantization or self.architecture.quantization
            found = StepMemory(self.architecture, self.trained, step, quantization, padded)
            self._memories[key] = found
        return self._memories[key].at(tokens, round(tokens * self.labelled))

    def duration(self, card: Card, length: float | None = None, rate: float | None = None) -> Duration | None:
        """The time of a step of rows of a length, by default the mean of the data's, or the longest; ``rate``
        is the card's measured one (operations a second)."""
        step = self.step(card)
        mean = length or (sum(self.lengths) / len(self.lengths) if self.lengths else self.length)
        rows = [round(mean)] * (step.batch * step.sequences * step.cells)
        labelled = round(sum(rows) * self.labelled)
        return duration(self.architecture, self.trained, step, card, rows, labelled, rate)

    def fits(
        self, card: Card, rows: int | None = None, length: int | None = None, share: float = 1.0
    ) -> bool:
        """Whether the card can compute a step, whose memory is not more than a share of what it has."""
        lacking = self.step(card).lacking(card)
        return not lacking and self.memory(card, rows, length).total <= share * card.memory

    def largest_batch(self, card: Card, share: float = 1.0) -> int:
        """The most rows of the longest length that fit in a pass; 0 where not even one does."""
        return _most(lambda rows: self.fits(card, rows, share=share), _MOST)

    def longest_row(self, card: Card) -> int:
        """The most tokens that a row may have for a batch of one to fit."""
        return _most(lambda length: self.fits(card, 1, length), self.architecture.positions)


def make_case(
    config: RunConfig,
    objective: Objective,
    recipe: str,
    architecture: Architecture,
    length: int,
    lengths: Sequence[int] = (),
    labelled: float = 1.0,
    classes: int | None = None,
) -> Case:
    """A case; ``classes`` are the outputs of a new head, where the recipe has one. Raises ``ConfigError``."""
    if classes:
        architecture = with_score(architecture, classes)
    quantized = bool(config.quantization or architecture.quantization)
    found = trained(architecture, config.lora, classes, quantized)
    return Case(config, objective, recipe, architecture, found, length, tuple(lengths), labelled)


def _most(fits: Any, limit: int) -> int:
    """The largest number up to ``limit`` that fits, where each smaller one fits, too; 0 for none."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def total_steps(case: Case) -> int:
    """Optimizer steps of the run; 0 where the rows are not known."""
    return optimizer_steps(case.config, len(case.lengths) // case.step().sequences)


def optimizer_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps by the ``trainer`` section; 0 without rows, but where it says how many."""
    trainer = config.trainer
    if (given := int(trainer.get("max_steps") or -1)) > 0:
        return given
    shares = planned_shares(config)
    an_epoch = ceil(rows / (shares.batch * shares.passes))
    return max(1, ceil(an_epoch * float(trainer.get("num_train_epochs") or 3))) if rows else 0
