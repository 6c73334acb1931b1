"""The biases of a base's layers where adapters train them (``bias=all``), each adapter its own.

PEFT keeps them in the layers of the base: they stay there when the adapter is disabled or another one is
active, and what is computed then is neither the base nor the other adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Biases:
    """The biases of a ``base``, made before an adapter is put on it.

    ``follow`` lets a model with adapters compute with those of the active adapter, and with the base's where
    it is disabled or does not train them.
    """

    def __init__(self, base: Any) -> None:
        import torch  # here, as this file is read where no library is needed yet

        modules = (each for each in base.modules() if isinstance(getattr(each, "bias", None), torch.Tensor))
        self._layers = list(modules)
        self._kept: dict[str | None, list[torch.Tensor]] = {None: self._now()}
        self._owner: str | None = None

    def only_trained(self) -> None:
        """Leave the others alone: each process may come to have a part of those."""
        trained = [layer.bias.requires_grad for layer in self._layers]
        self._layers = list(compress(self._layers, trained))
        self._kept = {name: list(compress(kept, trained)) for name, kept in self._kept.items()}

    def keep(self, name: str) -> None:
        """Let an adapter have the values that stand in the layers now."""
        self._kept[name] = self._now()

    def take(self, name: str) -> None:
        """As ``keep``, for the adapter that has put them there."""
        self.keep(name)
        self._owner = name

    def put(self, name: str | None) -> None:
        """Let the layers have those of an adapter; the base's with None or with one that trains none."""
        owner = name if name in self._kept else None
        if owner == self._owner:
            return
        self._kept[self._owner] = self._now()  # they may have been trained
        for layer, kept in zip(self._layers, self._kept[owner], strict=True):
            layer.bias.data.copy_(kept)  # in place, where recorded CUDA graphs read them
        self._owner = owner

    def follow(self, model: Any) -> None:
        """Let ``set_adapter`` and ``disable_adapter`` of a PEFT ``model`` move the biases, too."""
        set_adapter, disable_adapter = model.set_adapter, model.disable_adapter

        def set_with_biases(name: str, *args: Any, **kwargs: Any) -> None:
            set_adapter(name, *args, **kwargs)
            self.put(name)

        @contextmanager
        def disable_with_biases() -> Iterator[None]:
            owner = self._owner
            self.put(None)
            try:
                with disable_adapter():
                    yield
            finally:
                self.put(owner)

        model.set_adapter, model.disable_adapter, model.biases = set_with_biases, disable_with_biases, self

    def _now(self) -> list[torch.Tensor]:
        return [layer.bias.detach().clone() for layer in self._layers]


def trains_biases(config: Any) -> bool:
    """Whether an adapter of a PEFT config trains biases of the base."""
    return getattr(config, "bias", "none") not in ("none", None)
