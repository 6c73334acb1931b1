"""TRL's trainer for Kahneman-Tversky optimisation, on examples that are tokenised and masked already."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import use_adapter

from runner.data.labels import IGNORE
from runner.training.preference import ReferenceTrainer


class GuardedKTOTrainer(ReferenceTrainer, KTOTrainer):
    """``KTOTrainer`` on rows of ``input_ids``, ``labels`` and ``label``: liked or not."""

    groups = {"": ("",), "KL_": ("KL_",)}  # noqa: RUF012
    _eval_kl: float | None = None
    _for_policy = False
    kept = ("label", "ref_logps", "ref_KL_logps")

    def _prepare_dataset(self, dataset: Dataset, tokenizer: Any, args: Any, name: str) -> Dataset:
        """Add the mismatched rows of the KL estimate: each prompt with the answer of the row before it in its
        batch (KTO, arXiv:2402.01306, section 4.1); TRL keeps the order of the rows for that reason."""
        size = len(dataset) if name == "eval" else args.per_device_train_batch_size
        rows = dataset.map(_mismatched, batched=True, batch_size=size)
        return rows.with_format("numpy")

    def eval_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """The loss is a mean over rows, rewards over the liked ones or the others, logits over tokens."""
        liked, tokens = inputs["label"].bool(), inputs["completion_mask"][:, 1:].sum(1)
        rows = {"chosen": int(liked.sum()), "rejected": int((~liked).sum())}
        counts = {"chosen": int(tokens[liked].sum()), "rejected": int(tokens[~liked].sum())}
        by_row = {f"{kind}/{side}": count for kind in ("rewards", "logps") for side, count in rows.items()}
        by_token = {f"logits/{side}": count for side, count in counts.items()}
        return {"": len(liked), "entropy": int(tokens.sum()), **by_row, **by_token}

    def eval_result(self, means: dict[str, float]) -> dict[str, float]:
        """The margin lies between the mean rewards: a batch may have rows of one kind only."""
        sides = [means.get(f"rewards/{side}") for side in ("chosen", "rejected")]
        if sides[0] is not None and sides[1] is not None:
            means["rewards/margins"] = sides[0] - sides[1]
        return means

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library's, with the KL estimate of all held-out rows in the place of each batch's own."""
        self._eval_kl = self._kl_of(dataloader) if self.calculate_KL else None
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._eval_kl = None

    @torch.no_grad()
    def _kl_of(self, dataloader: Any) -> float:
        """The mean log-ratio of policy and reference over the mismatched rows (nats), not clamped."""
        model: Any = self.model
        training, total, rows = model.training, 0.0, 0
        model.eval()
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                policy: Any = super()._compute_kl_logps(model, inputs)
                reference = self._reference_kl_logps(model, inputs)
            total += float((policy - reference).double().sum())
            rows += len(policy)
        model.train(training)
        return total / rows

    def _reference_kl_logps(self, model: Any, inputs: dict[str, Any]) -> Any:
        if self.precompute_ref_logps:
            return inputs["ref_KL_logps"]
        if self.ref_model is not None:
            return super()._compute_kl_logps(self.ref_model, inputs)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return super()._compute_kl_logps(model, inputs)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        """Called by the loss for the policy, and then for the reference unless that is in the batch."""
        if self._eval_kl is None:
            return super()._compute_kl_logps(model, batch)
        if self.precompute_ref_logps:
            return batch["ref_KL_logps"] + self._eval_kl
        self._for_policy = not self._for_policy
        size = len(batch["label"])
        return torch.full((size,), self._eval_kl if self._for_policy else 0.0, device=self.args.device)


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
