"""TRL's preference trainers on rows that are rendered and masked already."""

from __future__ import annotations

import copy
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from runner.data.labels import IGNORE
from runner.models.adapter import add_reference
from runner.training.context import TrainerContext
from runner.training.trainer import GuardedTrainer

Rows = list[dict[str, Any]]
_WITHIN = object()  # given for a reference that is within the policy, of which TRL then makes none


class PaddedRows:
    """Collates rows under the names that TRL's losses read.

    Each prefix in ``groups`` names the columns ``{prefix}input_ids`` and ``{prefix}labels`` of a sequence; a
    group of several is one batch, the sequences of the first prefix before those of the second. ``kept`` are
    columns that become a tensor of one value a row. Lengths are padded to a multiple of ``multiple``.
    """

    def __init__(
        self,
        pad_token_id: int,
        groups: dict[str, tuple[str, ...]],
        kept: tuple[str, ...],
        multiple: int | None = None,
    ) -> None:
        self._pad, self._groups, self._kept, self._multiple = pad_token_id, groups, kept, multiple or 1

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
            batch[f"{name}input_ids"] = self._padded(ids, self._pad)
            batch[f"{name}attention_mask"] = self._padded([torch.ones_like(row) for row in ids])
            batch[f"{name}completion_mask"] = self._padded([(row != IGNORE).long() for row in labels])
        return batch | {key: torch.tensor([row[key] for row in rows]) for key in self._kept if key in rows[0]}

    def _padded(self, rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value)
        return torch.nn.functional.pad(padded, (0, -padded.shape[1] % self._multiple), value=value)


class ReferenceTrainer(GuardedTrainer):
    """What the trainers with a reference policy share.

    The reference is the model as it is when training starts: the base under a fresh adapter, a frozen copy of
    an adapter that is trained further, or a copy of the whole model. TRL would copy any adapter, a fresh one
    too, which PEFT does not have twice of every kind; and it would leave out parameters whose names end in
    the adapter's, those of IA3 and of LoRA on an embedding among them.
    """

    groups: dict[str, tuple[str, ...]]
    kept: tuple[str, ...]
    _ref_model: Any = None

    def __init__(
        self, model: Any, args: Any, tokenizer: Any, datasets: tuple[Dataset, Any], context: TrainerContext
    ) -> None:
        self._kept = context.kept
        reference: Any = _WITHIN
        if not hasattr(model, "peft_config"):
            if "reference" not in self._kept:  # else the model is trained by now
                self._kept["reference"] = None if args.precompute_ref_log_probs else copy.deepcopy(model)
            reference = self._kept["reference"]
        elif not context.fresh_adapter:
            add_reference(model)
        super().__init__(
            model,
            args,
            tokenizer,
            datasets,
            context,
            data_collator=PaddedRows(tokenizer.pad_token_id, self.groups, self.kept, args.pad_to_multiple_of),
            ref_model=reference,
        )

    @property
    def ref_model(self) -> Any:
        """The model that TRL computes the reference with; None where it is the policy with the adapter "ref",
        or without any."""
        return self._ref_model

    @ref_model.setter
    def ref_model(self, given: Any) -> None:
        self._ref_model = None if given is _WITHIN else given

    def _precompute_ref_logps(self, dataset: Dataset, name: str, *args: Any) -> Dataset:
        """The rows with the reference's log-probabilities, computed once before training."""
        if name not in self._kept:
            trl: Any = super()
            self._kept[name] = trl._precompute_ref_logps(dataset, name, *args)
        return self._kept[name]

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Nothing but a format that is read fast: the rows are prepared."""
        return dataset.with_format("numpy")

    def _set_signature_columns_if_needed(self) -> None:
        prefixes = [prefix for group in self.groups.values() for prefix in group]
        columns = [f"{prefix}{name}" for prefix in prefixes for name in ("input_ids", "labels")]
        self._signature_columns = [*columns, *self.kept]
