"""A combination of several adapters beside those that it was made of: sizes of the updates, and answers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from runner.config.adapters import Adapter, write_base
from runner.config.settings import RunConfig
from runner.core import console
from runner.evaluation.logit_kl import compare, read_texts
from runner.export.combine import combine, parts, weights_of
from runner.export.merge import Skeleton
from runner.export.merge_check import MergeSetup
from runner.export.related import related
from runner.export.updates import combined_norm, cosine, inner_products
from runner.models.adapter import attach, set_base, using
from runner.runs.run_folder import RunFolder

# An update this many times as large as those that it was made of (the mean of their norms) is no average.
_INFLATED = 1.5
_ALIKE = 0.5  # cosine from which two updates are taken for variants of one


@dataclass(frozen=True)
class Combination:
    """A combined adapter, its parts under the names that PEFT has for them, and what ``run.json`` keeps."""

    adapter: Adapter
    parts: list[Adapter]
    facts: dict[str, Any]


def combine_adapters(config: RunConfig, setup: MergeSetup, folder: RunFolder) -> Combination:
    """Save the combination of all adapters like any adapter, and say how large it is beside them."""
    target, named = folder.path / "adapter", parts(setup.adapters)
    skeleton = Skeleton(setup.base, named, setup.classes, torch.float32, setup.device)
    names = [part.name for part in named]
    products = inner_products(skeleton.model, names)
    combine(skeleton.model, config.merge, names, config.seed, target)
    set_base(target, config.model.path or f"random:{config.model.architecture}")
    write_base(target, dataclasses.asdict(config.model), setup.identity, setup.classes)
    setup.base.tokenizer.save_pretrained(target)
    weights = weights_of(config.merge, len(names))
    norms = [math.sqrt(products[row][row]) for row in range(len(names))]
    combined = Adapter("combined", target, None)
    size = math.sqrt(inner_products(_alone(setup, combined), [combined.name])[0][0])
    facts = {
        "combination_type": config.merge.combination_type,
        "weights": weights,
        "norms": norms,
        "norm_of_weighted_sum": combined_norm(products, weights),
        "norm": size,
        "related": related(setup.adapters),
        "cosines": [cosine(products, row, column) for row in range(len(names)) for column in range(row)],
    }
    for adapter, weight, norm in zip(setup.adapters, weights, norms, strict=True):
        console.out.print(f"[bold]part[/] {adapter.name}  weight {weight:.4g}, norm of its update {norm:.4g}")
    console.out.print(f"[bold]sum[/]  {config.merge.combination_type}, norm of its update {size:.4g}")
    _warn(folder, _doubts(setup, facts))
    return Combination(combined, named, facts)


def read_beside_parts(
    model: Any, setup: MergeSetup, made: Combination, texts: list[list[int]], folder: RunFolder
) -> list[torch.Tensor]:
    """The logits of the combination, on the base ``model``; how near each part is to it joins its facts.

    A combination that is further from every one of its parts than the untrained base is, is warned about: it
    was merged faithfully, and is none of them.
    """
    model = attach(model, [made.adapter, *made.parts])
    with using(model, made.adapter.name):
        expected = read_texts(model, texts, setup.compared)
    with using(model, None):
        base = read_texts(model, texts, setup.compared)
    found: list[dict[str, Any]] = []
    for adapter, part in zip(setup.adapters, made.parts, strict=True):
        with using(model, part.name):
            own = read_texts(model, texts, setup.compared)
        near = compare(own, expected)
        found.append(
            {
                "adapter": str(adapter.folder),
                "kl": near.kl,
                "greedy_agreement": near.greedy_agreement,
                "kl_of_base": compare(own, base).kl,
            }
        )
        del own
    made.facts["parents"] = found
    for adapter, facts in zip(setup.adapters, found, strict=True):
        console.out.print(
            f"[bold]part[/] {adapter.name}  KL {facts['kl']:.3g} nats a token from it to the combination "
            f"(to the base: {facts['kl_of_base']:.3g}), top-1 agreement {facts['greedy_agreement']:.1%}"
        )
    if len(found) > 1 and not any(facts["kl"] < facts["kl_of_base"] for facts in found):
        message = "the combination answers less like any of its adapters than the untrained base does"
        _warn(folder, [f"{message}: smaller merge.weights, or another merge.combination_type"])
    return expected


def _alone(setup: MergeSetup, adapter: Adapter) -> Any:
    """A PEFT model without weights under the saved combination, as whoever loads it gets it."""
    return Skeleton(setup.base, [adapter], setup.classes, torch.float32, setup.device).model


def _doubts(setup: MergeSetup, facts: dict[str, Any]) -> list[str]:
    """Warnings about adapters that are variants of one another, and about a sum that is larger than they."""
    notes = [f"{each}: their updates add up, as they point the same way" for each in facts["related"]]
    pairs = [(row, column) for row in range(len(facts["norms"])) for column in range(row)]
    for (row, column), same in zip(pairs, facts["cosines"], strict=True):
        if same > _ALIKE and not facts["related"]:
            one, other = setup.adapters[column].name, setup.adapters[row].name
            notes.append(f"the updates of {one} and {other} point the same way (cosine {same:.2f})")
    mean = sum(facts["norms"]) / len(facts["norms"])
    if facts["norm"] > _INFLATED * mean > 0:
        times = f"{facts['norm'] / mean:.2g} times as large as those of its adapters"
        notes.append(f"the combined update is {times}: weights that add up to 1 keep their size")
    return notes


def _warn(folder: RunFolder, notes: list[str]) -> None:
    for note in notes:
        folder.notes.append(note)
        console.warn(note)
