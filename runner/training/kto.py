"""TRL's trainer for Kahneman-Tversky optimisation, on examples that are tokenised and masked already."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl.trainer.kto_trainer import KTOTrainer

from runner.data.labels import IGNORE
from runner.training.preference import ReferenceTrainer


class GuardedKTOTrainer(ReferenceTrainer, KTOTrainer):
    """``KTOTrainer`` on rows of ``input_ids``, ``labels`` and ``label``: liked or not."""

    groups = {"": ("",), "KL_": ("KL_",)}  # noqa: RUF012
    kept = ("label", "ref_logps", "ref_KL_logps")

    def _prepare_dataset(self, dataset: Dataset, tokenizer: Any, args: Any, name: str) -> Dataset:
        """Add the mismatched rows of the KL estimate: each prompt with the answer of the row before it in its
        batch (KTO, arXiv:2402.01306, section 4.1); TRL keeps the order of the rows for that reason."""
        rows = dataset.map(_mismatched, batched=True, batch_size=args.per_device_train_batch_size)
        return rows.with_format("numpy")


def _mismatched(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    starts = [_first_trained(labels) for labels in batch["labels"]]
    answers = [(ids[at:], labels[at:]) for ids, labels, at in zip(*_columns(batch), starts, strict=True)]
    others = [answers[-1], *answers[:-1]]
    rows = list(zip(*_columns(batch), starts, others, strict=True))
    return {
        "KL_input_ids": [ids[:at] + other[0] for ids, _, at, other in rows],
        "KL_labels": [labels[:at] + other[1] for _, labels, at, other in rows],
    }


def _columns(batch: dict[str, list[Any]]) -> tuple[list[Any], list[Any]]:
    return batch["input_ids"], batch["labels"]


def _first_trained(labels: list[int]) -> int:
    return next((index for index, label in enumerate(labels) if label != IGNORE), len(labels))
