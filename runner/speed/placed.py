"""Batches that say where their labels are, so that no step looks for them on the GPU."""

from __future__ import annotations

from typing import Any

from runner.data.labels import IGNORE
from runner.speed.flat import lay_out


class WithPlaces:
    """A collator's batches with more, found on the host, as it would wait for a GPU.

    ``places`` [2, labels] are rows and positions of what ``labels[:, 1:]`` or ``completion_mask[:, 1:]``
    mark, ``tokens`` counts those that are no padding, and ``flat``, if it is wanted, has the rows side by
    side: the fields of ``Flat`` as a plain tuple, since the library takes one with names apart.
    """

    def __init__(self, collator: Any, flat: bool) -> None:
        self._collator, self._flat = collator, flat

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """One tensor a name, ``tokens`` and ``flat``."""
        batch = dict(self._collator(rows))
        labelled = batch["labels"] != IGNORE if "labels" in batch else batch["completion_mask"].bool()
        places, mask = labelled[:, 1:].nonzero().T.contiguous(), batch["attention_mask"]
        flat = lay_out(batch["input_ids"], mask, places) if self._flat else None
        return batch | {"places": places, "tokens": int(mask.sum()), "flat": flat and tuple(flat)}
