"""Kahneman-Tversky optimisation: learn from answers that were liked or not (TRL's KTOTrainer)."""

from __future__ import annotations

from recipes.training import train
from runner.config.settings import RunConfig
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with an answer and whether it was liked; a pair counts as one of each."""
    train(config, folder)
