"""A reader gets from the command line to the trainer in a few hops."""

from __future__ import annotations

import traceback
from pathlib import Path

from conftest import TINY
from transformers import Trainer

import recipes
import runner

OWN = [str(Path(str(package.__file__)).parent) for package in (recipes, runner)]


def test_at_most_five_own_frames_lead_to_the_trainer(cli, monkeypatch):
    found: list[str] = []
    train = Trainer.train

    def recorded(self, *args, **kwargs):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(tuple(OWN))]
        found.extend(f"{Path(frame.filename).stem}.{frame.name}" for frame in frames)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", recorded)
    assert cli(*TINY, "generation.samples=0").code == 0
    assert found[0] == "__main__.main"
    assert len(found) <= 5, found
