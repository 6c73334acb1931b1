"""A rule about a value of the config: what it is, between which bounds it is usual, and who says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runner.config.recipe_rules import recipe_names, trainer_class
from runner.config.settings import RunConfig
from runner.config.targets import UnknownTarget, target_fields

# How a model is trained, by the class of the section lora; "full" without one.
METHODS = {
    "LoraConfig": "lora",
    "AdaLoraConfig": "lora",
    "IA3Config": "ia3",
    "PromptTuningConfig": "prompt",
}
_UNITS = ((1e9, "B"), (1e6, "M"), (1, ""))


@dataclass(frozen=True)
class Facts:
    """A config, and what is known beside it: training rows, optimizer steps, parameters of the model."""

    config: RunConfig
    rows: int | None = None
    steps: int | None = None
    parameters: int | None = None

    def value(self, section: str, name: str) -> Any:
        """A value of ``lora`` or ``trainer``, or the library's default where the config names none."""
        given = getattr(self.config, section)
        if name in given:
            return given[name]
        try:
            field = target_fields(section, str(given.get("_target_"))).get(name)
        except UnknownTarget:
            return None
        return field.default if field else None

    def number(self, section: str, name: str) -> float | None:
        """A value of ``lora`` or ``trainer`` that is a number; None for any other."""
        value = self.value(section, name)
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if usable else None

    @cached_property
    def method(self) -> str | None:
        """A value of ``METHODS``, or full; None for another class of PEFT."""
        if not self.config.lora:
            return "full"
        # the config of a run may be cut short, and most are LoRA
        return METHODS.get(str(self.config.lora.get("_target_", "LoraConfig")).rpartition(".")[2])

    @cached_property
    def recipe(self) -> str | None:
        """The recipe that trains with the config's trainer, also where it is only planned or measured."""
        target = self.config.trainer.get("_target_")
        return next((name for name in recipe_names() if target and trainer_class(name) == target), None)


@dataclass(frozen=True)
class Band:
    """Usual values, ``low`` to ``high``, of some recipes and methods (empty: of all).

    ``parameters`` and ``rows`` are bounds (at least, below), within which it holds; where the model's size or
    the number of rows is not known, it does not. ``typical`` is the value to begin with.
    """

    low: float
    high: float
    typical: float
    source: str
    recipes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    parameters: tuple[float, float] | None = None
    rows: tuple[float, float] | None = None

    def holds(self, facts: Facts) -> bool:
        """Whether it is the band of these facts."""
        return (
            (not self.recipes or facts.recipe in self.recipes)
            and (not self.methods or facts.method in self.methods)
            and _within(facts.parameters, self.parameters)
            and _within(facts.rows, self.rows)
        )

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def when(self) -> str:
        """For whom it holds, in words; empty for everyone."""
        method = {"full": "full fine-tuning", "lora": "LoRA", "ia3": "IA3", "prompt": "prompt tuning"}
        parts = [", ".join(self.recipes), ", ".join(method[name] for name in self.methods)]
        parts.append(_bounds(self.parameters, "parameters"))
        parts.append(_bounds(self.rows, "rows"))
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class Departure:
    """A value outside its band: ``about`` what it is, the ``value``, what is ``usual``, ``why`` that matters,
    the ``source``, and the ``override`` that would follow the rule (empty where no key does)."""

    about: str
    key: str
    value: str
    usual: str
    why: str
    source: str
    override: str


@dataclass(frozen=True)
class Rule:
    """One rule: ``measure`` gives the value that it is about, None where it says nothing.

    The first band that holds for the facts decides. ``follow`` gives the override for a band, ``show`` the
    value in words and ``name`` a bound of the band.
    """

    about: str
    key: str
    why: str
    bands: tuple[Band, ...]
    measure: Callable[[Facts], float | None]
    follow: Callable[[Facts, Band], str]
    show: Callable[[Facts, float], str] | None = None
    name: Callable[[float], str] | None = None

    def departure(self, facts: Facts) -> Departure | None:
        """What it says of these facts; None where the value is usual, or nobody has said what is."""
        value = self.measure(facts)
        band = next((band for band in self.bands if band.holds(facts)), None)
        if value is None or band is None or value in band:
            return None
        return Departure(
            about=self.about,
            key=self.key,
            value=self.show(facts, value) if self.show else self.named(value),
            usual=self.usual(band),
            why=self.why,
            source=band.source,
            override=self.follow(facts, band),
        )

    def usual(self, band: Band) -> str:
        """The bounds of a band in words."""
        low, high = self.named(band.low), self.named(band.high)
        return low if low == high else f"{low} to {high}"

    def named(self, value: float) -> str:
        """A bound, or a value, as text."""
        return self.name(value) if self.name else number(value)


def number(value: float) -> str:
    """A number as it is typed: 2e-4, 0.03, 16."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    text = f"{value:.3g}" if abs(value) >= 1e-2 else f"{value:.2e}"
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def _within(value: float | None, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or (value is not None and bounds[0] <= value < bounds[1])


def _bounds(bounds: tuple[float, float] | None, what: str) -> str:
    if bounds is None:
        return ""
    low, high = bounds
    return f"from {_count(low)} {what}" if high == math.inf else f"fewer than {_count(high)} {what}"


def _count(value: float) -> str:
    size, unit = next((size, unit) for size, unit in _UNITS if value >= size)
    return f"{value / size:,g}{unit}" if unit else f"{value:,.0f}"
