"""Which rows each process has of every optimizer step: those of one process alone, dealt in equal parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Shares:
    """How the ``batch`` rows of each of the ``passes`` of a step are dealt to ``count`` processes.

    ``size`` rows are a part, which each process has at a time, ``turns`` times a step; it divides ``batch``.
    """

    batch: int
    passes: int
    count: int
    size: int
    turns: int

    def line(self) -> str:
        """For people; empty of one process alone."""
        if self.count == 1:
            return ""
        turns = f" {self.turns} times" if self.turns > 1 else ""
        each = f"{self.size} row{'s' * (self.size > 1)} each{turns}"
        return f"{self.count} processes, {each} a step, which has {self.batch * self.passes} rows"

    def warnings(self) -> list[str]:
        """Where some processes have nothing to do in a part of every step."""
        parts, places = self.batch * self.passes // self.size, self.count * self.turns
        if parts == places:
            return []
        rows = f"a step of {self.batch * self.passes} rows in parts of {self.size}"
        passes = self.count * math.ceil(self.passes / self.count)
        return [
            f"{rows} keeps {self.count} processes busy for {parts / places:.0%} of its time; "
            f"trainer.gradient_accumulation_steps={passes} would for all of it, with more rows a step"
        ]

    def record(self) -> dict[str, int]:
        """What ``run.json`` says."""
        return {
            "processes": self.count,
            "rows_each": self.size,
            "passes_each": self.turns,
            "rows_a_step": self.batch * self.passes,
        }


def shares_of(arguments: Any, count: int) -> Shares:
    """The shares of the steps of a trainer's ``arguments`` for one process."""
    batch = arguments.per_device_train_batch_size
    return share(batch, arguments.gradient_accumulation_steps, count)


def share(batch: int, passes: int, count: int) -> Shares:
    """The shares of a step of ``batch`` times ``passes`` rows with which it takes least time.

    Among parts that take as long, the largest: its rows are computed together.
    """

    def turns(size: int) -> int:
        return math.ceil(batch * passes // size / count)

    sizes = [size for size in range(1, batch + 1) if batch % size == 0]
    size = min(sizes, key=lambda size: (turns(size) * size, -size))
    return Shares(batch, passes, count, size, turns(size))


class Part(NamedTuple):
    """A part of a step: its rows [``first``, ``last``) in the order of the epoch, none where it is idle.

    ``number`` and ``row`` are where one process alone has them: in which of its passes, from which row on.
    ``weight`` is what the mean of the part is multiplied by so that all parts add up to the mean over passes
    of the means over rows that one process has, after the division by the turns of the step.
    """

    first: int
    last: int
    number: int
    row: int
    weight: float

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return self.first >= self.last


class Deal:
    """The parts of all steps of an epoch of ``rows`` rows for process ``rank``."""

    def __init__(self, shares: Shares, rows: int, rank: int, drop_last: bool = False) -> None:
        """``drop_last`` leaves out the rows that make no full batch of one process alone."""
        self.shares, self.rank = shares, rank
        self.rows = rows - rows % shares.batch if drop_last else rows
        self._step = shares.batch * shares.passes
        self.steps = math.ceil(self.rows / self._step)

    def turns(self, step: int) -> int:
        """The turns of a step of the epoch; the last one may have fewer."""
        return math.ceil(math.ceil(self._rows(step) / self.shares.size) / self.shares.count)

    def part(self, step: int, turn: int) -> Part:
        """What this process has in a turn of a step of the epoch."""
        shares, rows = self.shares, self._rows(step)
        row = (turn * shares.count + self.rank) * shares.size
        last = min(row + shares.size, rows)
        number = row // shares.batch
        alone = min(rows - number * shares.batch, shares.batch)  # rows of that pass of one process
        weight = 0.0
        if row < last:
            weight = self.turns(step) * (last - row) / alone / math.ceil(rows / shares.batch)
        begin = step * self._step
        return Part(begin + row, begin + max(last, row), number, row % shares.batch, weight)

    def parts(self) -> Iterator[Part]:
        """All parts of the epoch, in order."""
        for step in range(self.steps):
            for turn in range(self.turns(step)):
                yield self.part(step, turn)

    def _rows(self, step: int) -> int:
        return min(self._step, self.rows - step * self._step)


class DealtSampler:
    """A sampler's rows as far as they are dealt to one process, for batches of ``shares.size``.

    The order is the one of the process that leads. A part with nothing to compute is filled with rows that
    are computed for nothing, so that each process has as many batches.
    """

    def __init__(self, sampler: Any, deal: Deal, group: Any) -> None:
        self.sampler, self.deal, self._group = sampler, deal, group

    def __iter__(self) -> Iterator[int]:
        order = self._group.share(list(self.sampler))
        for part in self.deal.parts():
            if part.idle:
                yield from (order[number % len(order)] for number in range(self.deal.shares.size))
            else:
                yield from order[part.first : part.last]

    def __len__(self) -> int:
        return sum(part.last - part.first or self.deal.shares.size for part in self.deal.parts())

    def set_epoch(self, epoch: int) -> None:
        """Have the order of another epoch."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
