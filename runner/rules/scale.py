"""The scale of a LoRA adapter, and the warning of a run, or of all cells of a sweep, where it is unusual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runner.config.settings import RunConfig
from runner.models.lora_scale import lora_scale
from runner.rules import sources
from runner.rules.bands import Band, Facts, Rule, number

# Of a LoRA class of PEFT the field with the rank that its layers divide by.
_RANKS = {"LoraConfig": "r", "AdaLoraConfig": "init_r"}
_SHOWN = 3  # cells that a warning names


def adapter_scale(lora: Mapping[str, Any]) -> float | None:
    """What multiplies the term that an adapter adds, by its section ``lora``; None where it is no LoRA."""
    return _scale(Facts(RunConfig(recipe="", lora=dict(lora))))


def scale_notes(config: RunConfig) -> list[str]:
    """The warning of a run whose adapter has an unusual scale, with the override that would change it."""
    found = SCALE.departure(Facts(config))
    if found is None:
        return []
    cure = found.override or "it is the given adapter's own"
    return [f"{found.about} {found.value}, usual is {found.usual}: {cure}"]


def scale_summary(cells: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """One warning for all cells (their names, and their sections ``lora``) with an unusual scale."""
    every = [(name, adapter_scale(lora)) for name, lora in cells]
    band = SCALE.bands[0]
    odd = [f"{name} ({number(scale)})" for name, scale in every if scale is not None and scale not in band]
    if not odd:
        return []
    named = "; ".join(odd[:_SHOWN]) + ("; ..." if len(odd) > _SHOWN else "")
    return [
        f"{SCALE.about} outside the usual {SCALE.usual(band)} in {len(odd)} of {len(every)} cells: {named}"
    ]


def _scale(facts: Facts) -> float | None:
    alpha, rank = facts.number("lora", "lora_alpha"), facts.number("lora", _rank(facts))
    if facts.method != "lora" or alpha is None or not rank or rank < 0:
        return None
    return lora_scale(alpha, rank, _stabilised(facts))


def _rank(facts: Facts) -> str:
    return _RANKS.get(str(facts.config.lora.get("_target_")).rpartition(".")[2], "r")


def _stabilised(facts: Facts) -> bool:
    # AdaLoRA's layers divide by the rank whatever use_rslora says
    return _rank(facts) == "r" and facts.value("lora", "use_rslora") is True


def _show(facts: Facts, scale: float) -> str:
    key = _rank(facts)
    alpha, rank = (number(facts.number("lora", name) or 0) for name in ("lora_alpha", key))
    below = f"sqrt({key}={rank})" if _stabilised(facts) else f"{key}={rank}"
    return f"{number(scale)} (lora_alpha={alpha} / {below})"


def _follow(facts: Facts, band: Band) -> str:
    if facts.config.adapter:  # which keeps its shape
        return ""
    rank = facts.number("lora", _rank(facts)) or 0
    return f"lora.lora_alpha={max(1, round(band.typical / lora_scale(1, rank, _stabilised(facts))))}"


SCALE = Rule(
    "adapter scale",
    "lora.lora_alpha",
    "It multiplies what the adapter learns, as the learning rate does; published rates go with a usual one.",
    (
        Band(
            *(0.25, 4, 2),
            f"{sources.QLORA}, appendix B.2 (16/64); {sources.BIDERMAN} (2); {sources.PEFT} (32/8)",
            methods=("lora",),
        ),
    ),
    _scale,
    _follow,
    _show,
)
