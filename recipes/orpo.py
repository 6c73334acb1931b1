"""Odds ratio preference optimisation, without a reference model (TRL's ORPOTrainer, experimental)."""

from __future__ import annotations

from recipes.training import train
from runner.config.settings import RunConfig
from runner.runs.run_folder import RunFolder


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with a chosen and a rejected answer."""
    train(config, folder)
