"""The layers of a pack: a frozen linear layer and the low-rank terms of all adapters, each for its rows."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from runner.models.keyed_dropout import DropoutStream, KeyedDropout


class PackState:
    """What all layers of a pack share: each adapter's scaling, and which adapters the batch is for.

    A batch holds the same number of rows of each adapter in ``[first, last)``, adapter after adapter.
    """

    def __init__(self, scaling: list[float], device: torch.device, dtype: torch.dtype) -> None:
        self.scaling = torch.tensor(scaling, device=device, dtype=dtype)[:, None, None]
        self.first, self.last = 0, len(scaling)

    @property
    def size(self) -> int:
        """Adapters in the pack."""
        return self.scaling.shape[0]

    def show(self, first: int, last: int) -> None:
        """Set the adapters that the next batch is for."""
        self.first, self.last = first, last

    def keep(self, chosen: list[int]) -> None:
        """Forget all adapters but these."""
        self.scaling = self.scaling[chosen]
        self.show(0, len(chosen))


class PackedLinear(torch.nn.Module, BaseTunerLayer):
    """``base_layer(x) + scaling * (x A^T) B^T`` with an A [r, in] and a B [out, r] for each adapter's rows.

    ``lora_A`` is [adapters, r, in] and ``lora_B`` [adapters, out, r]; smaller ranks are filled up with zeros,
    whose gradients are zero. It is a tuner layer of PEFT, so that ``disable_adapter`` finds it.
    """

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(
        self,
        base_layer: torch.nn.Module,
        lora_A: torch.Tensor,
        lora_B: torch.Tensor,
        state: PackState,
        dropout: tuple[DropoutStream, int] | None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A, self.lora_B = torch.nn.Parameter(lora_A), torch.nn.Parameter(lora_B)
        self.dropout = KeyedDropout(*dropout) if dropout else None
        self._state, self._alone = state, False

    def enable_adapters(self, enabled: bool) -> None:
        """Switch between the adapters and the base alone."""
        self._alone = not enabled

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Rows [rows, length, in] to [rows, length, out]; each row meets its own adapter."""
        result = self.base_layer(x, *args, **kwargs)
        if self._alone:
            return result
        state = self._state
        lora_A, lora_B, scaling = self.lora_A, self.lora_B, state.scaling
        if state.first or state.last != lora_A.shape[0]:
            shown = slice(state.first, state.last)
            lora_A, lora_B, scaling = lora_A[shown], lora_B[shown], scaling[shown]
        if self.dropout is not None:
            x = self.dropout(x, slice(state.first, state.last))
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(lora_A.dtype)
        count = lora_A.shape[0]
        low = torch.bmm(x.reshape(count, -1, x.shape[-1]), lora_A.mT)
        low = (low * scaling).to(low.dtype)
        # a sum of its own, not baddbmm: compiled code adds it where the result is read next
        return result + torch.bmm(low, lora_B.mT).to(result.dtype).view_as(result)
