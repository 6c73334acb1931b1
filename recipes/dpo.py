"""Direct preference optimisation: prefer the better of two answers (TRL's DPOTrainer, all its losses)."""

from __future__ import annotations

from recipes.training import train
from runner.config.settings import RunConfig
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with a chosen and a rejected answer, against the model as it was at the start."""
    train(config, folder)
