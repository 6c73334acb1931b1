"""Batches of a pack: of every adapter the rows it would see alone, adapter after adapter, in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from runner.data.labels import IGNORE, Encoded

Index = tuple[int, int, int]  # which list of rows, which row, and which sequence of it


class RowLists(Dataset):
    """Several lists of rows, looked up by (list, row, sequence): 0 the chosen or only one, 1 the rejected."""

    def __init__(self, lists: Sequence[Sequence[Encoded]]) -> None:
        self._lists = lists

    def __len__(self) -> int:
        return len(self._lists[0])  # what one adapter sees in an epoch

    def __getitem__(self, index: Index) -> Encoded:
        row = self._lists[index[0]][index[1]]
        return row.sequences[index[2]]


class PackSampler:
    """Batches of one sampler a cell, concatenated.

    The orders are those of the library's loader (accelerate's ``SeedableRandomSampler``, ``data_seed``);
    adapters of one order share it. ``epoch`` is set by the loader.
    """

    def __init__(
        self,
        orders: Sequence[tuple[int, int]],
        lists: Sequence[Sequence[Any]],
        batch_size: int,
        sequences: int,
    ) -> None:
        """``orders`` names of each cell its list and its seed; each row has as many ``sequences``."""
        self._orders, self._sequences = list(orders), range(sequences)
        self._samplers = {
            order: SeedableRandomSampler(lists[order[0]], data_seed=order[1])
            for order in dict.fromkeys(orders)
        }
        self._batches = {
            order: BatchSampler(sampler, batch_size, drop_last=False)
            for order, sampler in self._samplers.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._batches.values())))

    def __iter__(self) -> Iterator[list[Index]]:
        orders = list(self._batches)
        for batches in zip(*(self._batches[order] for order in orders), strict=True):
            found = dict(zip(orders, batches, strict=True))
            yield [
                (order[0], row, sequence)
                for order in self._orders
                for sequence in self._sequences
                for row in found[order]
            ]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        for sampler in self._samplers.values():
            sampler.set_epoch(epoch)


class PackLoader(DataLoader):
    """A loader that leaves its batches on the host; the trainer copies them without waiting for the GPU."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        cast(PackSampler, self.batch_sampler).set_epoch(epoch)


@dataclass
class Collator:
    """Pads rows on the right into ``input_ids`` and ``labels`` [rows, length], with ``lengths`` [rows].

    There is no attention mask: to the right of a row nothing is looked at or trained on.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """One tensor a name."""
        return self.pad(rows)

    def pad(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Pads, without anything that a subclass adds."""
        longest = max(len(row.input_ids) for row in rows)
        ids = [row.input_ids + [self.pad_token_id] * (longest - len(row.input_ids)) for row in rows]
        labels = [row.labels + [IGNORE] * (longest - len(row.labels)) for row in rows]
        lengths = [len(row.input_ids) for row in rows]
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "lengths": torch.tensor(lengths),
        }


def evaluation_loader(
    lists: Sequence[Sequence[Encoded]],
    which: Sequence[int],
    batch_size: int,
    sequences: int,
    collator: Collator,
) -> DataLoader:
    """Held-out rows in their own order: of every adapter those of its list (``which``)."""
    rows = BatchSampler(SequentialSampler(lists[0]), batch_size, drop_last=False)
    batches = [
        [(number, row, sequence) for number in which for sequence in range(sequences) for row in batch]
        for batch in rows
    ]
    return DataLoader(RowLists(lists), batch_sampler=batches, collate_fn=collator)


def distinct(lists: Sequence[Sequence[Encoded]]) -> tuple[list[Sequence[Encoded]], list[int]]:
    """The different lists among these (by identity), and of each its number there."""
    found = list({id(rows): rows for rows in lists}.values())
    numbers = {id(rows): number for number, rows in enumerate(found)}
    return found, [numbers[id(rows)] for rows in lists]
