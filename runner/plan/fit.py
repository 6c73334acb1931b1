"""Which settings make a config fit a card, which of those take the least time, and the command with them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from runner.config.recipes.cards import CARDS, Card
from runner.core.paths import CONFIG_DIR
from runner.core.yaml_reader import read_yaml
from runner.parallel.processes import planned_shares, same_rows
from runner.plan.estimate import Case
from runner.plan.memory import GIB
from runner.plan.step import Step

_DEFAULT_RECIPE = "sft"
_BUDGETS = (0.5, 0.3)  # shares of the activations that are tried, before checkpoints of whole layers
SHARE = 0.95  # of a card that advice fills: what is measured may be a twentieth above what is calculated
ROUNDED = 1.25  # times the time that a base is worth which is not rounded to 4 bits, where the config has one
_OF_4_BITS = ("nf4", "fp4")
_GAIN = 0.03  # of a step's time, below which settings are not changed


@dataclass(frozen=True)
class Setting:
    """One way to train a case on a card: the changed case, its overrides, and each one's reason."""

    case: Case
    overrides: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def seconds(self, card: Card) -> float:
        """Seconds of a step, on a card of unknown rates as if it were an A100: only for comparing."""
        if card.rate is None:
            card = dataclasses.replace(CARDS["a100"], memory=card.memory, name=card.name, fp8=True)
        found = self.case.duration(card)
        return found.step if found else 0.0


def best_setting(case: Case, card: Card) -> Setting | None:
    """What fits the card, with a twentieth to spare, and takes the least time, for the same rows a step; None
    where nothing fits.

    The case as it is stays where it fits and nothing is faster by a few per cent. A base is quantised only
    where that saves a fifth of the time, and not where that saves none: it costs accuracy.
    """
    found = [setting for setting in _settings(case, card) if setting.case.fits(card, share=SHARE)]
    if not found:
        return None

    def seconds(setting: Setting) -> float:
        rounded = setting.overrides.get("quantization") == "nf4"
        return setting.seconds(card) * (ROUNDED if rounded else 1.0)

    best = min(map(seconds, found)) * (1 + _GAIN)
    # of those that are about as fast, one whose base is not rounded, and that changes the least
    alike = (one for one in found if seconds(one) <= best)
    return min(alike, key=lambda one: (bool(one.case.step().quantization), len(one.overrides)))


def _settings(case: Case, card: Card) -> Iterator[Setting]:
    for base in _bases(case, card):
        for kept in _recomputed(base):
            yield from _batches(kept, card)


def _bases(case: Case, card: Card) -> Iterator[Setting]:
    """The configured base, and those of bf16 and NF4. Only an adapter can be trained on a quantised one."""
    yield Setting(case)
    if not case.config.lora or case.architecture.quantization:
        return
    step = case.step(card)
    lacking = step.lacking(card)
    plain, smaller = case.quantized({}), case.quantized(_nf4())
    if step.quantization and plain.fits(card, share=SHARE):
        why = f"the {plain.step(card).precision} base fits"
        saved = f"{step.quantization} buys nothing here: {why}, is as fast at least, and is not rounded"
        why = f"{card.name} has no {lacking}; {why}" if lacking else saved
        yield Setting(plain, {"quantization": "none"}, {"quantization": why})
    if step.quantization not in _OF_4_BITS:
        before, after = (_base(one, card) for one in (case, smaller))
        why = f"the base takes {after:.1f} GiB instead of {before:.1f}; its weights are rounded to 4 bits"
        why = f"{card.name} has no {lacking}; {why}" if lacking else why
        yield Setting(smaller, {"quantization": "nf4"}, {"quantization": why})


def _recomputed(setting: Setting) -> Iterator[Setting]:
    """The setting as it is, and with fewer activations kept."""
    case = setting.case
    key = "trainer.gradient_checkpointing"
    configured = bool(case.config.trainer.get("gradient_checkpointing"))
    if configured:
        again = case.changed(gradient_checkpointing=False)
        why = "activations fit: nothing needs to be computed a second time"
        yield _more(setting, again, key, "false", why)
    yield setting
    if configured:
        return
    if case.step().pieces.compile and case.config.speed.activation_memory_budget is None:
        for budget in _BUDGETS:
            why = f"{budget:.0%} of a layer's activations are kept, the cheapest others computed again"
            name = "speed.activation_memory_budget"
            yield _more(setting, case.budgeted(budget), name, f"{budget:g}", why)
    why = "only the inputs of layers are kept: a third more operations, the least memory"
    yield _more(setting, case.changed(gradient_checkpointing=True), key, "true", why)


def _batches(setting: Setting, card: Card) -> Iterator[Setting]:
    """The configured batch, and that with which as many rows a step take least time of those that fit: of
    several the one with the most rows a pass."""
    yield setting
    case, planned = setting.case, planned_shares(setting.case.config)
    room = case.largest_batch(card, SHARE)
    fitting = [(fields, shares) for fields, shares in same_rows(case.config) if shares.size <= room]
    if not fitting:
        return
    fields, best = min(fitting, key=lambda each: (each[1].turns * each[1].size, -each[1].size))
    if best.size == planned.size:
        return
    why = "as many rows a pass as fit" if best.size > planned.size else "the largest batch that fits"
    why += f"; still {planned.batch * planned.passes} rows a step"
    overrides = {f"trainer.{name}": str(value) for name, value in fields.items()}
    yield Setting(
        case.changed(**fields),
        {**setting.overrides, **overrides},
        {**setting.reasons, next(iter(overrides)): why},
    )


def _more(setting: Setting, case: Case, key: str, value: str, why: str) -> Setting:
    return Setting(case, {**setting.overrides, key: value}, {**setting.reasons, key: why})


def _base(case: Case, card: Card) -> float:
    return case.memory(card).parts["base"] / GIB


@cache
def _nf4() -> dict[str, Any]:
    return dict(read_yaml(CONFIG_DIR / "quantization" / "nf4.yaml"))


def covering_length(lengths: tuple[int, ...], share: float = 0.99) -> int:
    """The length (tokens) that a share of the rows does not exceed."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def with_recomputation(step: Step) -> str:
    """How a step keeps its activations, in a word for a table."""
    if step.pieces.compile and step.pieces.activation_memory_budget < 1:
        budget = step.pieces.activation_memory_budget
        return "checkpoints" if budget == 0 else f"budget {budget:g}"
    return "checkpoints" if step.recomputed else "all kept"


def command(overrides: Sequence[str], recipe: str, setting: Setting | None) -> str | None:
    """``python -m runner`` with what was typed, and a setting's overrides; None where nothing fits."""
    return None if setting is None else training_command(overrides, recipe, setting.overrides)


def training_command(overrides: Sequence[str], recipe: str, changed: Mapping[str, str]) -> str:
    """``python -m runner`` with what was typed for a plan of a training recipe, without the plan's own keys,
    and with ``changed`` values."""
    words = []
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if key == "recipe" or key.startswith("plan.") or key in changed or key == "output_dir":
            continue
        if "quantization" in changed and key.startswith("quantization."):
            continue  # of the base that is exchanged
        if key == "trainer" and recipe != _DEFAULT_RECIPE:
            continue  # its recipe chooses it
        words.append(word)
    if recipe != _DEFAULT_RECIPE:
        words.insert(0, f"recipe={recipe}")
    words += [f"{key}={value}" for key, value in changed.items()]
    return " ".join(["python -m runner", *map(shlex.quote, words)])
