"""What makes a training recipe what it is, as plain data; each recipe declares its own in
``recipes/NAME.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["completion", "preference", "unpaired_preference", "classification"]
TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]  # PEFT's names: a head for tokens, or one for classes and scores


@dataclass(frozen=True)
class SavedHead:
    """A head that stands in the adapter or the checkpoint that ``where`` names; ``classes`` are its outputs.

    One that is part of an adapter (``in_adapter``) goes with it; in place of a checkpoint's another can be
    drawn.
    """

    where: str
    classes: tuple[str, ...]
    in_adapter: bool

    @property
    def named(self) -> bool:
        """Whether the outputs have names, other than transformers gives to those that have none."""
        return not all(re.fullmatch(r"LABEL_\d+", name) for name in self.classes)


@dataclass(frozen=True)
class Objective:
    """One way to train: its examples, its trainer, its losses, and what may differ between packed cells.

    ``kind`` is what an example is (TRL's data set types). ``trainer`` and ``packed`` import the trainer's
    class and the objective of a pack when they are called, and with them torch; without ``packed`` every
    cell of a sweep runs alone. ``reference`` says that the loss compares with a frozen copy of the model as
    it was at the start. ``head`` gives the outputs of the head from the prepared data and the head that is
    trained further, if there is one (class names; one for a score); without it the model writes tokens.
    ``losses`` are the allowed values of ``trainer.loss_type`` (empty: not checked here), ``check`` yields
    further config errors of the ``trainer`` section as (key, message, hint). ``pack_axes`` are the fields of
    ``trainer`` that may differ between the cells of a pack, beside those of the optimizer. ``scores`` are the
    metrics of an evaluation that the run keeps, by the trainer's names. ``token_loss`` says that the loss is
    made of the tokens' log-probabilities, for which ``speed`` has pieces. ``adapters_refused`` are PEFT's
    config classes of the adapters that its trainer fails with. ``tag`` is the model card's.
    """

    kind: Kind
    tag: str
    trainer: Callable[[], Any]
    task_type: TaskType = "CAUSAL_LM"
    reference: bool = False
    head: Callable[[Any, SavedHead | None], list[str]] | None = None
    losses: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], Iterator[tuple[str, str, str]]] | None = None
    packed: Callable[[], Any] | None = None
    token_loss: bool = False
    adapters_refused: tuple[str, ...] = ()
    pack_axes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ("eval_loss",)

    @property
    def generates(self) -> bool:
        """Whether the trained model writes text, so that held-out prompts can be answered and scored."""
        return self.task_type == "CAUSAL_LM"


Objectives = Mapping[str, Objective]  # by recipe


def task_type(objective: Objective | None) -> TaskType:
    """PEFT's task type of a recipe; one that does not train reads models that write tokens."""
    return objective.task_type if objective else "CAUSAL_LM"
