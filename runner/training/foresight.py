"""What a run is expected to take on the device of this process, before its weights are loaded."""

from __future__ import annotations

import dataclasses

import psutil

from runner.config.objective import Objective
from runner.config.recipes.cards import Card, find_card
from runner.config.settings import RunConfig
from runner.data.splits import Data
from runner.models.model import device
from runner.plan.expected import Expected, Rows, expected
from runner.runs.run_folder import RunFolder
from runner.training.setup import TrainingSetup


def foresee(
    config: RunConfig,
    objective: Objective,
    setup: TrainingSetup,
    data: Data,
    head: list[str] | None,
    steps: int,
    folder: RunFolder,
) -> Expected | None:
    """Record what a run will take. Raises ``ConfigError`` where it cannot fit its GPU, unless
    ``plan.check=false``.

    None where the model's config does not tell. Nothing is refused but on CUDA.
    """
    card = cuda_card()
    found = expected(
        config,
        objective,
        setup.base.config.to_dict(),
        (setup.precision.name, setup.pieces),
        _rows(setup, data, objective),
        steps,
        len(head) if head else None,
        card,
        psutil.Process().memory_info().rss,
    )
    if found is None:
        return None
    folder.record["predicted"] = found.record()
    if config.plan.check and card is not None:
        import torch

        found.check_fits(torch.cuda.mem_get_info()[0])
    return found


def compare(folder: RunFolder) -> None:
    """Put the peak that was measured beside the predicted one."""
    if "predicted" in folder.record:
        folder.record["predicted"]["measured_peak_bytes"] = folder.metrics["peak_memory_bytes"]


def _rows(setup: TrainingSetup, data: Data, objective: Objective) -> Rows:
    train = data.train
    labelled = train.trained_tokens / max(1, train.tokens) if objective.token_loss else 1.0
    if setup.packs and setup.max_length:
        return Rows(
            max(1, train.tokens // setup.max_length), setup.max_length, float(setup.max_length), labelled
        )
    sequences = 2 if objective.kind == "preference" else 1
    mean = train.tokens / max(1, len(train.rows) * sequences)
    return Rows(len(train.rows), train.longest, min(mean, train.longest), labelled)


def cuda_card() -> Card | None:
    """The CUDA device of this process, with its real memory."""
    if device().type != "cuda":
        return None
    import torch

    facts = torch.cuda.get_device_properties(device())
    known = find_card(facts.name) or Card(facts.name, 0)
    return dataclasses.replace(known, name=facts.name, memory=facts.total_memory)
