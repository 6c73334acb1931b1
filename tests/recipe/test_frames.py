"""A reader gets from the command line to the trainer in a few hops, for a run and for a pack."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from transformers import Trainer

import recipes
import runner
from helpers.command import TINY
from helpers.sweeps import sweep_here

OWN = tuple(str(Path(str(package.__file__)).parent) for package in (recipes, runner))
WORDS = (*TINY, "generation.samples=0")


@pytest.fixture
def frames(monkeypatch) -> list[str]:
    """Our own frames above the library's ``Trainer.train``, once it was called."""
    found: list[str] = []
    train = Trainer.train

    def recorded(self, *args, **kwargs):
        stack = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OWN)]
        found.extend(f"{Path(frame.filename).stem}.{frame.name}" for frame in stack)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", recorded)
    return found


def test_at_most_five_of_our_frames_lead_from_the_command_to_the_trainer(cli, frames):
    assert cli(*WORDS).code == 0
    assert frames[0] == "__main__.main"
    assert len(frames) <= 5, frames


@pytest.mark.slow
def test_at_most_five_of_our_frames_lead_from_a_job_to_the_trainer(cli, frames, monkeypatch):
    _, codes = sweep_here(cli, monkeypatch, *WORDS, "lora.r=2,4")
    assert codes == [0]
    assert frames[0] == "worker.run_job"
    assert len(frames) <= 5, frames
