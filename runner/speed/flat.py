"""Rows of a batch side by side in one, without padding: each attends to its own tokens and to no other's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from runner.speed import cpu_kernels

SIDE_BY_SIDE = "rows_side_by_side"
_FAR = 1e-3  # of the norm; the same products in another row of a matrix are usually the same to the last bit


class Flat(NamedTuple):
    """The rows of a batch side by side.

    ``input_ids`` and ``position_ids``, of each row from 0, are [1, tokens]; ``row_ids`` [1, tokens] are the
    rows' numbers, and ``ends`` [rows + 1] where rows begin and end, 32-bit both; ``places`` [labels] are the
    tokens whose hidden states are wanted.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    row_ids: torch.Tensor
    ends: torch.Tensor
    places: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.input_ids.shape[1]


def lay_out(input_ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> Flat | None:
    """The rows of ``input_ids`` [rows, length], padded on the right by ``mask``, side by side.

    ``places`` [2, labels] are rows and positions. None for a single row.
    """
    if len(input_ids) == 1:
        return None
    lengths = mask.sum(1)
    flat = side_by_side([row[:length] for row, length in zip(input_ids, lengths.tolist(), strict=True)])
    return flat._replace(places=flat.ends[places[0]].long() + places[1])


def side_by_side(rows: list[torch.Tensor]) -> Flat:
    """Rows of token ids [length], without places."""
    lengths = torch.tensor([len(row) for row in rows])
    ends = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    numbers = torch.arange(len(rows), dtype=torch.int32).repeat_interleave(lengths)
    return Flat(torch.cat(rows)[None], positions[None], numbers[None], ends, ends.new_zeros(0).long())


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
    """transformers' attention function for rows side by side, whose ends are ``cu_seq_lens_q``.

    ``query`` [1, heads, tokens, width] and the ``key`` and ``value`` of as many or fewer heads; the result is
    [1, tokens, heads, width]. On CUDA it is the flash kernel for rows of several lengths, elsewhere each row
    by itself. Raises ``RuntimeError`` where the ends are not handed on to it, or attention has dropout.
    """
    if cu_seq_lens_q is None:
        raise RuntimeError("the model does not hand cu_seq_lens_q on to its attention")
    if dropout:
        raise RuntimeError("dropout of attention")
    kind = query.device.type
    if kind == "cuda":
        if torch.is_autocast_enabled(kind):
            query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
        flat = (each.transpose(1, 2).squeeze(0) for each in (query, key, value))
        # the longest row may have all tokens: blocks of the kernel that find nothing to do end at once
        longest = query.shape[2]
        found = torch.ops.aten._flash_attention_forward(
            *flat, cu_seq_lens_q, cu_seq_lens_q, longest, longest, 0.0, True, False, scale=scaling
        )
        return found[0][None], None
    rows = [
        cpu_kernels.attend(
            module,
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            None,
            scaling=scaling,
        )[0]
        for begin, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(rows, 1), None


AttentionInterface.register(SIDE_BY_SIDE, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(SIDE_BY_SIDE, lambda *args, **kwargs: None)


@torch.no_grad()
def mixing(hidden: Callable[..., torch.Tensor], vocabulary: int) -> str | None:
    """Why rows side by side are not what they are alone in a model, None where they are.

    ``hidden`` gives hidden states [1, tokens, width] of a ``Flat`` of token ids below ``vocabulary``; with
    ``numbered=False`` it leaves the positions of a single row to the model. A row is computed behind two
    different ones, where it must be the same to the last bit, and before one of them: so any layer is found
    that looks at the neighbours of a row, or at its place in the batch.
    """
    draw = torch.Generator().manual_seed(0)
    row, one, other = (torch.randint(vocabulary, (size,), generator=draw) for size in (7, 9, 9))
    behind_one, behind_other = (hidden(side_by_side([each, row]))[0, -len(row) :] for each in (one, other))
    before_one = hidden(side_by_side([row, one]))[0, : len(row)]
    if not torch.equal(behind_one, behind_other):
        return "the hidden states of a row depend on the rows beside it"
    if not _are_near(behind_one, before_one):
        return "the hidden states of a row depend on its place in the batch"
    if not _are_near(*(hidden(side_by_side([row]), numbered=numbered) for numbered in (True, False))):
        return "the model does not number the positions of a row from 0"
    return None


@torch.no_grad()
def drawing(hidden: Callable[[Flat], torch.Tensor], vocabulary: int) -> str | None:
    """Why a model in training draws other random numbers for rows side by side, None where it draws none.

    Raises ``RuntimeError`` where attention has dropout, or a layer has keyed dropout and lost the places of
    its tokens.
    """
    rows = side_by_side([torch.arange(size) % vocabulary for size in (7, 9)])
    if not torch.equal(hidden(rows), hidden(rows)):
        return "the model has dropout of its own, whose random numbers follow the shape of a batch"
    return None


def _are_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).norm()) <= _FAR * float(expected.norm())
