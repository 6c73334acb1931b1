"""The rows of a step, dealt to processes: each row once, in batches that a process alone would have too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.parallel.deal import Deal, DealtSampler, Shares, share
from runner.parallel.group import ALONE

_STEPS = some.tuples(some.integers(1, 8), some.integers(1, 5), some.integers(1, 5))


def _deals(shares: Shares, rows: int, drop_last: bool = False) -> list[Deal]:
    return [Deal(shares, rows, rank, drop_last) for rank in range(shares.count)]


@given(_STEPS, some.integers(1, 60))
def test_every_row_of_a_step_is_in_one_part(step, rows):
    deals = _deals(share(*step), rows)
    size = step[0] * step[1]
    for number in range(deals[0].steps):
        parts = [deal.part(number, turn) for deal in deals for turn in range(deals[0].turns(number))]
        dealt = sorted(row for part in parts for row in range(part.first, part.last))
        assert dealt == list(range(number * size, min(rows, (number + 1) * size)))


@given(_STEPS, some.integers(1, 60))
def test_a_part_is_where_one_process_alone_has_it(step, rows):
    batch, passes, _ = step
    for deal in _deals(share(*step), rows):
        for number in range(deal.steps):
            for turn in range(deal.turns(number)):
                part = deal.part(number, turn)
                if not part.idle:
                    alone = number * batch * passes + part.number * batch + part.row
                    assert part.first == alone
                    assert part.row + part.last - part.first <= batch


@given(_STEPS, some.integers(1, 60))
def test_the_weights_of_a_step_make_the_mean_over_passes_of_means_over_rows(step, rows):
    batch, passes, _ = step
    deals = _deals(share(*step), rows)
    values = [float(row * row % 7) for row in range(rows)]
    for number in range(deals[0].steps):
        turns, total = deals[0].turns(number), 0.0
        for part in (deal.part(number, turn) for deal in deals for turn in range(turns)):
            if not part.idle:
                mean = sum(values[part.first : part.last]) / (part.last - part.first)
                total += part.weight * mean / turns
        window = values[number * batch * passes : (number + 1) * batch * passes]
        batches = [window[first : first + batch] for first in range(0, len(window), batch)]
        assert total == pytest.approx(sum(sum(each) / len(each) for each in batches) / len(batches))


@given(_STEPS, some.integers(1, 60), some.booleans())
def test_all_processes_have_as_many_batches(step, rows, drop_last):
    shares = share(*step)
    counts = []
    for deal in _deals(shares, rows, drop_last):
        sampler = DealtSampler(range(rows), deal, ALONE)
        dealt = list(sampler)
        assert len(dealt) == len(sampler)
        counts.append(-(-len(dealt) // shares.size))
    assert len(set(counts)) == 1
    kept = rows - rows % step[0] if drop_last else rows
    assert deals_steps(counts[0], shares) == -(-kept // (step[0] * step[1]))


def deals_steps(batches: int, shares: Shares) -> int:
    """As the library counts them from the number of batches."""
    return -(-batches // shares.turns)


@pytest.mark.parametrize(
    ("step", "size", "turns"),
    [
        ((8, 1, 2), 4, 1),
        ((1, 16, 2), 1, 8),
        ((4, 2, 2), 4, 1),  # whole batches, where there are enough passes
        ((6, 2, 4), 3, 1),
        ((2, 4, 3), 1, 3),  # 8 rows do not divide by 3: one part is idle
        ((7, 1, 2), 1, 4),
        ((5, 3, 1), 5, 3),
    ],
)
def test_the_largest_parts_that_take_least_time(step, size, turns):
    shares = share(*step)
    assert (shares.size, shares.turns) == (size, turns)


def test_processes_with_nothing_to_do_are_said():
    assert share(1, 2, 2).warnings() == []
    (warning,) = share(1, 4, 3).warnings()
    assert "67%" in warning
    assert "trainer.gradient_accumulation_steps=6" in warning
