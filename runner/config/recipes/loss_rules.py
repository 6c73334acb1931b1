"""What a trainer of TRL finds wrong with its arguments only once the model is loaded, or never reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from runner.config.origins import Origins
from runner.core.errors import Issue

Values = dict[str, Any]

# Fields of a trainer that its loss is computed with: of two cells that differ in one, the losses are numbers
# of different kinds. Those of how long and how fast is trained are none of them.
LOSS_FIELDS = (
    *("loss_type", "loss_weights", "beta", "label_smoothing", "label_smoothing_factor", "ld_alpha"),
    *("f_divergence_type", "f_alpha_divergence_coef", "use_weighting", "discopop_tau"),
    *("desirable_weight", "undesirable_weight", "center_rewards_coefficient", "router_aux_loss_coef"),
    *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    *("completion_only_loss", "assistant_only_loss", "max_length", "truncation_mode", "eval_packing"),
)


def check_reference(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue where the reference model shall follow the trained one, and is none of its own."""
    trainer, key = values.get("trainer") or {}, "trainer.sync_ref_model"
    if not trainer.get("sync_ref_model"):
        return
    if values.get("lora") or values.get("adapter"):
        message = f"{key}: with an adapter the reference is the base without it, which never changes"
        yield Issue(origins.where(key), message, "lora=none, or leave it out")
    if trainer.get("precompute_ref_log_probs"):
        message = f"{key} contradicts trainer.precompute_ref_log_probs, which scores the rows only once"
        yield Issue(origins.where(key), message, "keep one of them")


def check_losses(values: Values, origins: Origins) -> Iterator[Issue]:
    """An issue where the losses are none, or all of them are multiplied by nothing."""
    trainer = values.get("trainer") or {}
    if trainer.get("loss_type") == []:
        yield Issue(
            origins.where("trainer.loss_type"), "an empty trainer.loss_type names no loss", "leave it out"
        )
    for key, names in _WEIGHTS.items():
        given = [trainer.get(name) for name in names]
        weights = given[0] if isinstance(given[0], list) else given
        if weights and all(weight == 0 for weight in weights):
            message = f"{key}: with every weight at 0 nothing is trained"
            yield Issue(origins.where(key), message, "at least one above 0")


# The weights of a loss's parts, by the key that an issue names: a list of them, or a field each.
_WEIGHTS = {
    "trainer.loss_weights": ("loss_weights",),
    "trainer.desirable_weight": ("desirable_weight", "undesirable_weight"),
}


def zero_beta(trainer: Mapping[str, Any], losses: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    """For a recipe's own check: an issue where ``beta`` is 0, with which these losses have no gradient."""
    if trainer.get("beta") == 0 and (first := next(iter(losses), None)):
        message = f"trainer.beta=0: the loss {first} has no gradient then, and nothing is trained"
        yield "trainer.beta", message, "above 0; 0.1 is usual"
