"""The values that the rules are about, read off a config, and the overrides that set them."""

from __future__ import annotations

import math
from collections.abc import Callable

from runner.models.build import finds_its_rate
from runner.rules.bands import Band, Facts, number

Measure = Callable[[Facts], float | None]
Follow = Callable[[Facts, Band], str]
# Schedules of transformers that take no warmup.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
# Names of attention's projections, fused ones included. An adapter on nothing else leaves the MLP out.
_ATTENTION = {
    *("attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn"),
    *("query", "key", "value", "q", "k", "v"),
}


def field(key: str) -> Measure:
    """The value of a key such as ``trainer.beta`` where it is a number."""
    section, _, name = key.partition(".")
    return lambda facts: facts.number(section, name)


def typical(key: str) -> Follow:
    """The override that sets a key to a band's typical value."""
    return lambda facts, band: f"{key}={number(band.typical)}"


def learning_rate(facts: Facts) -> float | None:
    """The peak rate; None with an optimizer that takes it as a factor."""
    factor = finds_its_rate(str(facts.value("trainer", "optim")))
    return None if factor else facts.number("trainer", "learning_rate")


def reach(facts: Facts) -> float | None:
    """0 where a new LoRA adapter is on attention alone, as far as names tell, else 1."""
    if facts.method != "lora" or facts.config.adapter:
        return None
    named = facts.value("lora", "target_modules")
    if named is None:  # PEFT's choice is query and value of nearly every architecture
        return 0
    names = [named] if isinstance(named, str) else named
    return 0 if isinstance(names, list) and _ATTENTION.issuperset(map(str, names)) else 1


def max_steps(facts: Facts) -> float | None:
    """``trainer.max_steps`` where it decides, as it then does instead of the epochs."""
    steps = facts.number("trainer", "max_steps")
    return steps if steps is not None and steps > 0 else None


def batch(facts: Facts) -> float | None:
    """Rows of an optimizer step on one device."""
    rows = facts.number("trainer", "per_device_train_batch_size")
    passes = facts.number("trainer", "gradient_accumulation_steps")
    return rows * passes if rows and passes else None


def follow_batch(facts: Facts, band: Band) -> str:
    """More or fewer passes a step, and smaller ones where a single pass has too many rows."""
    rows = facts.number("trainer", "per_device_train_batch_size") or 1
    if rows > band.high:
        size = number(band.typical)
        return f"trainer.per_device_train_batch_size={size} trainer.gradient_accumulation_steps=1"
    return f"trainer.gradient_accumulation_steps={max(1, round(band.typical / rows))}"


def epochs(facts: Facts) -> float | None:
    """How often each row is seen; with ``max_steps`` None where rows are not known, or are packed."""
    steps, rows = max_steps(facts), batch(facts)
    if steps is None:
        return facts.number("trainer", "num_train_epochs")
    if not facts.rows or not rows or facts.value("trainer", "packing"):
        return None
    return steps * rows / facts.rows


def follow_epochs(facts: Facts, band: Band) -> str:
    """The band's epochs, or as many steps."""
    steps, rows = max_steps(facts), batch(facts)
    if steps is None or not rows or not facts.rows:
        return f"trainer.num_train_epochs={number(band.typical)}"
    return f"trainer.max_steps={math.ceil(band.typical * facts.rows / rows)}"


def warmup(facts: Facts) -> float | None:
    """The share of the steps; None where the schedule has none, or steps are given and their sum unknown."""
    given, steps = facts.number("trainer", "warmup_steps"), max_steps(facts) or facts.steps
    if given is None or facts.value("trainer", "lr_scheduler_type") in WITHOUT_WARMUP:
        return None
    if given < 1:  # a share already
        return given
    return given / steps if steps else None


def beta(facts: Facts) -> float | None:
    """DPO's own beta: other losses give theirs another meaning."""
    losses = facts.value("trainer", "loss_type") or "sigmoid"
    return facts.number("trainer", "beta") if losses in ("sigmoid", ["sigmoid"]) else None


def noise(facts: Facts) -> float | None:
    """NEFTune's alpha; None without noise."""
    return facts.number("trainer", "neftune_noise_alpha") or None
