"""Rows of a batch side by side in a line, without padding: each attends to its own tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from runner.speed import cpu_kernels

SIDE_BY_SIDE = "rows_side_by_side"
_FAR = 1e-3  # of the norm; the same products in another row of a matrix are usually the same to the last bit


class Flat(NamedTuple):
    """The rows of a batch side by side: of each adapter that the batch is for its own, in a line.

    ``input_ids`` and ``position_ids``, of each row from 0, are [lines, tokens], filled up behind the last row
    of a line; ``row_ids`` [lines, tokens] are the rows' numbers in their line, and ``ends`` [lines, rows + 1
    or more] where they begin and end there, 32-bit both. ``places`` [labels] are the tokens whose hidden
    states are wanted, counted over all lines.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    row_ids: torch.Tensor
    ends: torch.Tensor
    places: torch.Tensor

    @property
    def lines(self) -> int:
        """How many there are: one, but in a pack."""
        return self.input_ids.shape[0]

    @property
    def tokens(self) -> int:
        """Of each line."""
        return self.input_ids.shape[1]

    def filled(self, width: int, rows: int) -> Flat:
        """With lines of ``width`` tokens, that many ``rows`` at least in each, the last ones empty, and what
        fills a line up as a row of its own."""
        more = max(0, rows + 1 - self.ends.shape[1])
        ids, positions, numbers = (pad(each, (0, width - self.tokens)) for each in self[:3])
        places = self.places + self.places // self.tokens * (width - self.tokens)
        return Flat(ids, positions, numbers, pad(self.ends, (0, more), value=width), places)


def lay_out(input_ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, lines: int = 1) -> Flat | None:
    """The rows of ``input_ids`` [rows, length], padded on the right by ``mask``, side by side in ``lines`` of
    as many rows.

    ``places`` [2, labels] are rows and positions. None where a line has a single row.
    """
    count = len(input_ids) // lines
    if count == 1:
        return None
    # By NumPy: PyTorch's masks wake all threads for each of these small arrays, and 4 rows of 2048 tokens
    # took 45 ms on 32 cores, in which the GPU waited for its batch.
    ids, real = input_ids.numpy(), mask.numpy().astype(bool)
    ends = np.pad(real.sum(1).reshape(lines, count).cumsum(1), ((0, 0), (1, 0)))
    tokens = int(ends[:, -1].max())
    taken = np.arange(tokens) < ends[:, -1:]

    def line_up(values: np.ndarray) -> torch.Tensor:
        found = np.zeros((lines, tokens), values.dtype)
        found[taken] = np.broadcast_to(values, real.shape)[real]
        return torch.from_numpy(found)

    numbers = np.tile(np.arange(count, dtype=np.int32), lines)[:, None]
    begins = torch.from_numpy(ends[:, :-1] + np.arange(lines)[:, None] * tokens)
    return Flat(
        input_ids=line_up(ids),
        position_ids=line_up(np.arange(mask.shape[1])),
        row_ids=line_up(numbers),
        ends=torch.from_numpy(np.pad(ends, ((0, 0), (0, 1)), constant_values=tokens).astype(np.int32)),
        places=begins.flatten()[places[0]] + places[1],
    )


def side_by_side(rows: list[torch.Tensor], lines: int = 1) -> Flat:
    """Rows of token ids [length] in a line, and that line as often as there are ``lines``; without places."""
    lengths = torch.tensor([len(row) for row in rows])
    ends = pad(lengths.cumsum(0), (1, 0)).int()
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    numbers = torch.arange(len(rows), dtype=torch.int32).repeat_interleave(lengths)
    ids, positions, numbers, ends = (
        each.expand(lines, -1) for each in (torch.cat(rows), positions, numbers, ends)
    )
    return Flat(ids, positions, numbers, ends, places=torch.zeros(0, dtype=torch.long))


def all_ends(ends: torch.Tensor, tokens: int) -> torch.Tensor:
    """Where rows begin and end [n], counted over all lines of ``tokens``; ``ends`` are those of each line."""
    lines = torch.arange(len(ends), dtype=ends.dtype, device=ends.device)
    return (ends + lines[:, None] * tokens).flatten()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function for rows side by side, whose ``all_ends`` are ``cu_seq_lens_q``.

    ``query`` [lines, heads, tokens, width] and the ``key`` and ``value`` of as many or fewer heads; the
    result is [lines, tokens, heads, width]. On CUDA it is the flash kernel for rows of several lengths,
    elsewhere each row by itself. Raises ``RuntimeError`` where the ends are not handed on to it, or attention
    has dropout.
    """
    if cu_seq_lens_q is None:
        raise RuntimeError("the model does not hand cu_seq_lens_q on to its attention")
    if dropout:
        raise RuntimeError("dropout of attention")
    kind = query.device.type
    query, key, value = cpu_kernels.as_autocast(query, key, value)
    tokens = query.shape[2]
    shape = *query.transpose(1, 2).shape[:-1], value.shape[-1]  # values are narrower in latent attention
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    if kind == "cuda":
        # the longest row may have all tokens of a line: blocks of the kernel without work end at once
        ends, longest = cu_seq_lens_q, tokens
        found = torch.ops.aten._flash_attention_forward(
            *flat, ends, ends, longest, longest, 0.0, True, False, scale=scaling
        )
        return found[0].view(shape), None
    rows = []
    for begin, end in pairwise(cu_seq_lens_q.tolist()):
        if begin < end:
            query, key, value = (each[None, begin:end].transpose(1, 2) for each in flat)
            rows.append(cpu_kernels.attend(module, query, key, value, None, scaling=scaling)[0])
    return torch.cat(rows, 1).view(shape), None


AttentionInterface.register(SIDE_BY_SIDE, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(SIDE_BY_SIDE, lambda *args, **kwargs: None)


@torch.no_grad()
def mixing(hidden: Callable[..., torch.Tensor], vocabulary: int, lines: int) -> str | None:
    """Why rows side by side are not what they are alone in a model, None where they are.

    ``hidden`` gives hidden states [lines, tokens, width] of a ``Flat`` of token ids below ``vocabulary``;
    with ``numbered=False`` it leaves the positions of a single row to the model. All ``lines`` are alike, and
    the last is looked at. A row is computed behind two different ones, where it must be the same to the last
    bit, and before one of them: so any layer is found that looks at the neighbours of a row, or at its place
    in the batch.
    """
    draw = torch.Generator().manual_seed(0)
    row, one, other = (torch.randint(vocabulary, (size,), generator=draw) for size in (7, 9, 9))
    behind_one, behind_other = (
        hidden(side_by_side([each, row], lines))[-1, -len(row) :] for each in (one, other)
    )
    before_one = hidden(side_by_side([row, one], lines))[-1, : len(row)]
    if not torch.equal(behind_one, behind_other):
        return "the hidden states of a row depend on the rows beside it"
    if not _are_near(behind_one, before_one):
        return "the hidden states of a row depend on its place in the batch"
    alone = (hidden(side_by_side([row], lines), numbered=numbered)[-1] for numbered in (True, False))
    if not _are_near(*alone):
        return "the model does not number the positions of a row from 0"
    return None


@torch.no_grad()
def drawing(hidden: Callable[[Flat], torch.Tensor], vocabulary: int, lines: int) -> str | None:
    """Why a model in training draws other random numbers for rows side by side, None where it draws none.

    Raises ``RuntimeError`` where attention has dropout, or a layer has keyed dropout and lost the places of
    its tokens.
    """
    rows = side_by_side([torch.arange(size) % vocabulary for size in (7, 9)], lines)
    if not torch.equal(hidden(rows), hidden(rows)):
        return "the model has dropout of its own, whose random numbers follow the shape of a batch"
    return None


def _are_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).norm()) <= _FAR * float(expected.norm())
