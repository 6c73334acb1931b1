"""What of a base an adapter is on, and what stays as it was: counted on the model without weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner.core.errors import Issue
from runner.models.lora_targets import EVERY, HEAD, PAST, Weights, is_meant

_LEAF = re.compile(r"\.(weight|bias)$")
_SMALL = 0.0005  # a share that would read as 0.0%
_SHOWN = 4  # kinds of frozen weights that are named
_MISSED = "lora.target_modules means them, but PEFT takes these names for other weights here"


@dataclass(frozen=True)
class Adapted:
    """Which weights of a base are trained, and which are not.

    ``total`` are the numbers of the base, ``covered`` those in matrices with an adapter or trained
    themselves. ``modules`` counts what is adapted by kind (``q_proj``, ``experts.down_proj``), ``whole`` what
    is trained itself. ``frozen`` are the numbers in all other weights by kind. Of these ``experts`` and
    ``linear`` are the names of expert weights and of linear layers of the text path, ``missed`` those that
    ``lora.target_modules`` chooses and PEFT leaves as they are, each with the reason. ``banks`` are
    the numbers in all expert weights by kind.
    """

    total: int
    covered: int
    modules: dict[str, int]
    whole: dict[str, int]
    frozen: dict[str, int]
    experts: list[str]
    linear: list[str]
    missed: dict[str, str]
    banks: dict[str, int]

    @property
    def on_experts(self) -> bool:
        """Whether expert weights have adapters, which PEFT puts together anew in every pass."""
        return bool(self.banks) and any(kind in self.modules for kind in self.banks)

    @property
    def share(self) -> float:
        """The share of the base's weights that is adapted or trained."""
        return self.covered / max(1, self.total)

    def line(self) -> str:
        """One line for people."""
        counts: dict[int, list[str]] = {}
        for kind, count in (self.modules | self.whole).items():
            counts.setdefault(count, []).append(kind)
        on = ", ".join(f"{count} x {' '.join(kinds)}" for count, kinds in counts.items())
        return f"{self.share:.1%} of the base's weights ({on}){self._frozen_line()}"

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        shares = {kind: round(size / max(1, self.total), 6) for kind, size in self.frozen.items()}
        return {
            "share": round(self.share, 6),
            "modules": self.modules,
            "trained": self.whole,
            "frozen": shares,
        }

    def warnings(self) -> list[str]:
        """What may not be meant: experts, which are most of such a model, without an adapter."""
        notes = []
        for reason in dict.fromkeys(self.missed.values()):
            names = [name for name, why in self.missed.items() if why == reason]
            count = f"{len(names)} linear layer{'s' * (len(names) > 1)}"
            notes.append(f"{', '.join(_kinds(names))} stay frozen ({count}): {reason}")
        if self.experts:
            size = sum(size for kind, size in self.frozen.items() if kind in set(map(_kind, self.experts)))
            where = f"{len(self.experts)} expert weights stay frozen, {size / self.total:.0%} of the base"
            kinds = ", ".join(_kinds(self.experts))
            notes.append(f"{where}: {kinds}; a LoraConfig on all-linear adapts them")
        return notes

    def issues(self) -> Iterator[Issue]:
        """What ``lora.require_all`` forbids."""
        if left := list(dict.fromkeys([*self.experts, *self.linear, *self.missed])):
            message = f"{len(left)} matrices have no adapter: {', '.join(_kinds(left))}"
            hint = "lora.target_modules=all-linear without lora.exclude_modules, or leave it out"
            yield Issue("lora.require_all", message, hint)

    def unquantized(self, width: int) -> str | None:
        """A warning of the expert weights that a quantised base keeps in ``width`` bytes a number, with their
        size: only linear layers are quantised."""
        size = sum(self.banks.values()) * width
        if not size:
            return None
        total = f"{size / 2**30:.1f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"
        what = f"quantization leaves expert weights as they are ({', '.join(self.banks)})"
        return f"{what}: {total} with {8 * width} bits a number"

    def _frozen_line(self) -> str:
        shares = sorted(((size / self.total, kind) for kind, size in self.frozen.items()), reverse=True)
        shown = [f"{kind} {share:.1%}" for share, kind in shares if share >= _SMALL]
        more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
        return f"; frozen: {', '.join(shown[:_SHOWN] + more)}" if shown else ""


def parameters_of(model: Any) -> dict[int, tuple[str, int]]:
    """The parameters of a model by identity: full name and numbers, each once."""
    return {id(each): (name, each.numel()) for name, each in model.named_parameters()}


def adapted(wrapped: Any, before: dict[int, tuple[str, int]], weights: Weights, given: Any = None) -> Adapted:
    """What of a base is adapted; ``before`` are its ``parameters_of`` before PEFT ``wrapped`` it, ``weights``
    its ``weights_of`` then, ``given`` the PEFT config as it was asked for."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    on: set[int] = set()
    whole = {id(each) for each in wrapped.parameters() if each.requires_grad and id(each) in before}
    for module in wrapped.modules():
        if isinstance(module, ModulesToSaveWrapper):
            whole |= {id(each) for each in module.original_module.parameters()}
        elif isinstance(module, BaseTunerLayer):
            name = getattr(module, "parameter_name", "weight")  # of a layer on a parameter
            on.add(id(getattr(module.get_base_layer(), name, None)))
    on &= before.keys()
    whole -= on
    kinds = {key: _kind(name) for key, (name, _) in before.items()}
    frozen: Counter[str] = Counter()
    for key, (name, size) in before.items():
        if key not in on | whole:
            frozen[_frozen_kind(name, weights)] += size
    banks: Counter[str] = Counter()
    of_experts = set(weights.experts)
    for name, size in before.values():
        if name in of_experts:
            banks[_kind(name)] += size
    trained = {_LEAF.sub("", before[key][0]) for key in on | whole}
    missed = {name: _MISSED for name in weights.linear if is_meant(given, name) and name not in trained}
    if getattr(given, "target_modules", None) == EVERY:
        missed |= {name: why for name, why in weights.left.items() if why.endswith(PAST)}
    return Adapted(
        total=sum(size for _, size in before.values()),
        covered=sum(before[key][1] for key in on | whole),
        modules=dict(Counter(kinds[key] for key in before if key in on)),
        whole=dict(Counter(kinds[key] for key in before if key in whole)),
        frozen=dict(frozen),
        experts=[name for name in weights.experts if name not in trained],
        linear=[name for name in weights.linear if name not in trained],
        missed=missed,
        banks=dict(banks),
    )


def _kinds(names: list[str]) -> list[str]:
    return list(dict.fromkeys(map(_kind, names)))


def _kind(name: str) -> str:
    """What a weight is called in every layer: its module's own name, with that of the experts it is in."""
    *above, last = _LEAF.sub("", name).split(".")
    of_experts = above[-1:] if above and "expert" in above[-1] else []
    return ".".join([*of_experts, last])


def _frozen_kind(name: str, weights: Weights) -> str:
    """The kind of a weight that is not trained: towers and norms are taken together."""
    module = _LEAF.sub("", name)
    if not name.startswith(weights.text) and weights.left.get(module) != HEAD:
        return module.removeprefix("model.").partition(".")[0]
    return "norms and biases" if name.endswith(".bias") or "norm" in _kind(name) else _kind(name)
