"""TRL's preference trainers on rows that are rendered and masked already."""

from __future__ import annotations

import copy
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from runner.data.labels import IGNORE
from runner.training.context import TrainerContext
from runner.training.trainer import GuardedTrainer

Rows = list[dict[str, Any]]


class PaddedRows:
    """Collates rows under the names that TRL's losses read.

    Each prefix in ``groups`` names the columns ``{prefix}input_ids`` and ``{prefix}labels`` of a sequence; a
    group of several is one batch, the sequences of the first prefix before those of the second. ``kept`` are
    columns that become a tensor of one value a row.
    """

    def __init__(self, pad_token_id: int, groups: dict[str, tuple[str, ...]], kept: tuple[str, ...]) -> None:
        self._pad, self._groups, self._kept = pad_token_id, groups, kept

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` and ``completion_mask`` of each group, padded on the right."""
        batch: dict[str, torch.Tensor] = {}
        for name, prefixes in self._groups.items():
            if f"{prefixes[0]}input_ids" not in rows[0]:
                continue
            ids, labels = (
                [torch.as_tensor(row[f"{prefix}{column}"]) for prefix in prefixes for row in rows]
                for column in ("input_ids", "labels")
            )
            batch[f"{name}input_ids"] = pad_sequence(ids, batch_first=True, padding_value=self._pad)
            batch[f"{name}attention_mask"] = _padded([torch.ones_like(row) for row in ids])
            batch[f"{name}completion_mask"] = _padded([(row != IGNORE).long() for row in labels])
        return batch | {key: torch.tensor([row[key] for row in rows]) for key in self._kept if key in rows[0]}


class ReferenceTrainer(GuardedTrainer):
    """What the trainers with a reference policy share.

    The reference is the model as it is when training starts: the base under a fresh adapter, a frozen copy of
    an adapter that is trained further, or a copy of the whole model.
    """

    groups: dict[str, tuple[str, ...]]
    kept: tuple[str, ...]

    def __init__(
        self, model: Any, args: Any, tokenizer: Any, datasets: tuple[Dataset, Any], context: TrainerContext
    ) -> None:
        whole = not hasattr(model, "peft_config")
        super().__init__(
            model,
            args,
            tokenizer,
            datasets,
            context,
            data_collator=PaddedRows(tokenizer.pad_token_id, self.groups, self.kept),
            ref_model=copy.deepcopy(model) if whole and not args.precompute_ref_log_probs else None,
        )
        # TRL copies any adapter; a fresh one changes nothing, and without it the reference pass is cheaper
        if context.fresh_adapter and "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Nothing but a format that is read fast: the rows are prepared."""
        return dataset.with_format("numpy")

    def _set_signature_columns_if_needed(self) -> None:
        prefixes = [prefix for group in self.groups.values() for prefix in group]
        columns = [f"{prefix}{name}" for prefix in prefixes for name in ("input_ids", "labels")]
        self._signature_columns = [*columns, *self.kept]


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True)
