"""Odds ratio preference optimisation, without a reference model (TRL's ORPOTrainer, experimental)."""

from __future__ import annotations

from recipes.training import train
from runner.artifacts import RunFolder
from runner.settings import RunConfig


def run(config: RunConfig, folder: RunFolder) -> None:
    """Train on rows with a chosen and a rejected answer."""
    train(config, folder)
