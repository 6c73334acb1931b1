"""Direct preference optimisation: prefer the better of two answers (TRL's DPOTrainer, all its losses)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runner.config.objective import Objective
from runner.config.recipes.loss_rules import zero_beta

# The losses built on the difference of two rewards, in which another divergence can take the place of the KL.
_DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


def _trainer() -> Any:
    from runner.training.dpo import GuardedDPOTrainer

    return GuardedDPOTrainer


def _packed() -> Any:
    from runner.packed.dpo import PackedDpo

    return PackedDpo


def _check(trainer: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    given = trainer.get("loss_type")
    losses = given if isinstance(given, list) else [given] if given else []
    yield from zero_beta(trainer, (name for name in losses if name != "sft"))
    smoothing = trainer.get("label_smoothing")
    if "robust" in losses and isinstance(smoothing, (int, float)) and smoothing >= 0.5:
        message = f"trainer.label_smoothing={smoothing}: half of the labels and more would be wrong"
        yield "trainer.label_smoothing", message, "loss_type=robust: at least 0 and below 0.5"
    if trainer.get("use_weighting") and (sorting := [name for name in losses if name.startswith("aot")]):
        message = f"trainer.use_weighting weighs pairs, which the loss {sorting[0]} takes apart"
        yield "trainer.use_weighting", message, "another loss, or leave it out"
    if trainer.get("padding_free"):
        message = "trainer.padding_free: TRL's DPOTrainer pads all the same"
        yield "trainer.padding_free", message, "leave it out"
    if "exo_pair" in losses and not trainer.get("label_smoothing"):
        message = "trainer.loss_type=exo_pair needs trainer.label_smoothing above 0"
        yield "trainer.loss_type", message, "its paper recommends 1e-3"
    divergence = trainer.get("f_divergence_type", "reverse_kl")
    wrong = [name for name in losses if name not in _DIVERGENT]
    if divergence != "reverse_kl" and wrong:
        message = f"trainer.f_divergence_type={divergence} is not defined for the loss {wrong[0]}"
        yield "trainer.f_divergence_type", message, f"for: {', '.join(_DIVERGENT)}"


OBJECTIVE = Objective(
    kind="preference",
    tag="dpo",
    trainer=_trainer,
    reference=True,
    # those of TRL 1.16, which checks the name in the first step only
    losses=(
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ),
    check=_check,
    packed=_packed,
    token_loss=True,
    # the loss is called for each cell with the cell's own arguments
    pack_axes=(
        "beta",
        "loss_type",
        "loss_weights",
        "label_smoothing",
        "discopop_tau",
        "f_divergence_type",
        "f_alpha_divergence_coef",
    ),
    scores=("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"),
)
