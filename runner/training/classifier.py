"""transformers' trainer for a sequence classifier, with accuracy and F1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, EvalPrediction, Trainer

from runner.training.trainer import GuardedTrainer


class GuardedClassifierTrainer(GuardedTrainer, Trainer):
    """``Trainer`` on rows of ``input_ids`` and ``label``, the number of the class."""

    def __init__(self, model: Any, args: Any, tokenizer: Any, *rows: Any, **more: Any) -> None:
        collator = DataCollatorWithPadding(tokenizer)
        super().__init__(
            model, args, tokenizer, *rows, data_collator=collator, compute_metrics=_scores, **more
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "label"]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step, whose tokens are counted."""
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *args, **kwargs)


def _scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 as the plain mean over the classes that occur in the labels or in the predictions, as
    scikit-learn's ``f1_score(average="macro")``: one that is neither held out nor predicted says nothing."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    guessed = logits.argmax(axis=-1)
    scores = []
    for label in np.union1d(guessed, labels):
        right = np.sum((guessed == label) & (labels == label))
        named = np.sum(guessed == label) + np.sum(labels == label)
        scores.append(2 * right / named)
    return {"accuracy": float(np.mean(guessed == labels)), "f1": float(np.mean(scores))}
