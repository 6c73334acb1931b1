"""Several LoRA adapters of one base as one, by PEFT's ``add_weighted_adapter``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config.adapters import Adapter
from runner.config.settings import MergeSettings
from runner.core.errors import ConfigError, Issue

NAME = "default"  # PEFT saves the adapter of this name without a folder of its own
_FACTORS_ADDED = ("linear", "dare_linear", "magnitude_prune")  # and not only their products
_SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
# What an adapter may hold besides A and B, and PEFT would drop in a combination without a word.
_LOST = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "lora_bias",
)


def combines(merge: MergeSettings, adapters: list[Adapter]) -> bool:
    """Whether the merge needs a combined adapter: there are several, or one with a weight."""
    return len(adapters) > 1 or merge.weights is not None


def check_combination(merge: MergeSettings, adapters: list[Adapter]) -> None:
    """Check the settings against each other and the adapters' configs. Raises ``ConfigError``."""
    issues = list(_setting_issues(merge, len(adapters)))
    if combines(merge, adapters):
        issues += _adapter_issues(merge, adapters)
    if issues:
        raise ConfigError(issues)


def combine(model: Any, merge: MergeSettings, names: list[str], seed: int, folder: Path) -> None:
    """Combine the adapters ``names`` of a PEFT model and save the result as a PEFT folder.

    ``seed`` decides what DARE drops. Raises ``ConfigError`` where PEFT cannot combine them.
    """
    from transformers import set_seed

    weights = weights_of(merge, len(names))
    if merge.combination_type in _FACTORS_ADDED:
        weights = _without_cross_terms(weights)
    set_seed(seed)
    try:
        model.add_weighted_adapter(
            names,
            weights,
            NAME,
            combination_type=merge.combination_type,
            svd_rank=merge.svd_rank,
            svd_full_matrices=False,  # the first columns are all that is used
            density=merge.density,
            majority_sign_method=merge.majority_sign_method,
        )
    except (ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(Issue(f"merge.combination_type={merge.combination_type}", message)) from error
    rank = model.peft_config[NAME].r
    for name, weight in model.named_parameters():
        if f".lora_A.{NAME}." in name and len(weight) < rank:
            message = f"rank {rank} is more than {name.partition('.lora_A')[0]} has room for ({len(weight)})"
            hint = f"merge.combination_type=svd merge.svd_rank={len(weight)}, or less"
            raise ConfigError(Issue(f"merge.combination_type={merge.combination_type}", message, hint))
    # PEFT puts every scale into the new A and B, and alpha = r; rank stabilisation would scale them again
    model.peft_config[NAME].use_rslora = False
    model.save_pretrained(str(folder), selected_adapters=[NAME], save_embedding_layers=False)


def weights_of(merge: MergeSettings, count: int) -> list[float]:
    """The weight of each of ``count`` adapters; by default such that the result is their average.

    TIES divides by the number of adapters that agree, so that there the average has weights of 1.
    """
    if merge.weights is not None:
        return [float(weight) for weight in merge.weights]
    return [1.0 if "ties" in merge.combination_type else 1.0 / count] * count


def _without_cross_terms(weights: list[float]) -> list[float]:
    """Weights for PEFT's linear kinds, under which equal adapters give the sum of the weights times one.

    These kinds add up A and B by themselves, each times the root of its weight, and multiply the sums: the
    products of one adapter's A with another's B come on top. Of two equal ones at weight 1 that is four times
    one; of unrelated ones it is noise.
    """
    roots = [math.sqrt(abs(weight)) for weight in weights]
    given = sum(math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)) * sum(roots)
    factor = sum(weights) / given if given else 1.0
    return [weight * factor for weight in weights] if factor > 0 else weights


def parts(adapters: list[Adapter]) -> list[Adapter]:
    """The adapters under names that cannot be that of the combination."""
    return [replace(adapter, name=f"part{number}") for number, adapter in enumerate(adapters)]


def _setting_issues(merge: MergeSettings, count: int) -> Iterator[Issue]:
    kind = merge.combination_type
    sparse = kind.startswith(("ties", "dare", "magnitude_prune"))
    if merge.weights is not None:
        where = f"merge.weights={merge.weights}"
        if len(merge.weights) != count:
            message = f"{len(merge.weights)} weights for {count} adapter{'s' * (count != 1)}"
            yield Issue(where, message, "one weight for each adapter, in the same order")
        numbers = [each for each in merge.weights if type(each) in (int, float) and math.isfinite(each)]
        if len(numbers) < len(merge.weights):
            yield Issue(where, "a weight is not a number", "'merge.weights=[0.7,0.3]'")
        elif not any(numbers):
            yield Issue(where, "with every weight at 0 the base would be left", "'merge.weights=[0.7,0.3]'")
    if count == 1 and kind != "linear":
        message = "one adapter alone cannot be combined"
        yield Issue(f"merge.combination_type={kind}", message, "several: 'adapter=[A,B]'")
    if sparse and merge.density is None:
        message = f"merge.combination_type={kind} needs the share of values that is kept"
        yield Issue("merge.density", message, "merge.density=0.5")
    if not sparse and merge.density is not None:
        hint = "it belongs to ties, dare and magnitude_prune"
        yield Issue(f"merge.density={merge.density}", f"has no effect on {kind}", hint)
    if merge.svd_rank is not None and not kind.endswith("svd"):
        hint = "it belongs to svd and the kinds that end in _svd"
        yield Issue(f"merge.svd_rank={merge.svd_rank}", f"has no effect on {kind}", hint)
    if merge.majority_sign_method != "total" and "ties" not in kind:
        where = f"merge.majority_sign_method={merge.majority_sign_method}"
        yield Issue(where, f"has no effect on {kind}", "it belongs to ties and dare_ties")


def _adapter_issues(merge: MergeSettings, adapters: list[Adapter]) -> Iterator[Issue]:
    ranks: dict[str, int] = {}
    for adapter in adapters:
        shape, where = adapter.config, f"adapter={adapter.folder}"
        if shape.get("peft_type") != "LORA":
            message = f"is {shape.get('peft_type')}; only LoRA adapters can be combined or weighted"
            yield Issue(where, message, "merge it alone, without merge.weights")
            continue
        lost = [key for key in _LOST if shape.get(key)]
        lost += ["bias"] if shape.get("bias", "none") != "none" else []
        if lost:
            yield Issue(where, f"has {', '.join(lost)}, which is lost in a combination", "merge it alone")
        ranks[str(adapter.folder)] = max(shape.get("r", 0), *(shape.get("rank_pattern") or {}).values(), 0)
    if merge.combination_type in _SAME_RANK and len(set(ranks.values())) > 1:
        where = f"merge.combination_type={merge.combination_type}"
        facts = ", ".join(f"r={rank} in {folder}" for folder, rank in ranks.items())
        yield Issue(where, f"needs adapters of one rank: {facts}", "merge.combination_type=cat or svd")
