"""Direct preference optimisation: prefer the better of two answers (TRL's DPOTrainer, all its losses)."""

from __future__ import annotations

from recipes.training import train
from runner.artifacts import RunFolder
from runner.settings import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with a chosen and a rejected answer, against the model as it was at the start."""
    train(config, folder)
