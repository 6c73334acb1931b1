"""Every weight is trained: a checkpoint brings all of them back, whatever its files call them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import TINY, Run
from helpers.tiny_model import build, using
from runner.models.model import byte_tokenizer
from runner.training.sft import GuardedSFTTrainer

WORDS = (
    *TINY,
    "lora=none",
    "data.max_rows=8",
    "trainer.max_steps=4",
    "trainer.save_strategy=steps",
    "trainer.save_steps=2",
    "trainer.learning_rate=1e-3",
    "generation.samples=0",
    "data.metric=null",
)
BEST = ("trainer.load_best_model_at_end=true", "trainer.eval_strategy=steps", "trainer.eval_steps=2")
# The lowest held-out loss is that of step 2: the rate is far too large for the third step.
LARGE = ("trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0", "trainer.learning_rate=0.5")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "qwen3_moe"])
def test_a_checkpoint_brings_every_weight_back(cli, tmp_path, monkeypatch, kind):
    build(kind).save_pretrained(tmp_path / kind)
    byte_tokenizer().save_pretrained(tmp_path / kind)
    words = (*WORDS, *using(tmp_path / kind))
    whole, step = cli(*words, folder="whole"), GuardedSFTTrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise RuntimeError("power cut")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedSFTTrainer, "training_step", stop)
        assert cli(*words, folder="cut").code == 1
    resumed = cli(*words, "resume=auto", folder="cut")
    assert (whole.code, resumed.code) == (0, 0)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", "qwen3_moe"])
def test_the_best_model_has_every_weight_of_its_checkpoint(cli, tmp_path, kind):
    build(kind).save_pretrained(tmp_path / kind)
    byte_tokenizer().save_pretrained(tmp_path / kind)
    run = cli(*WORDS, *BEST, *LARGE, *using(tmp_path / kind))
    assert run.code == 0
    best = load_file(run.folder / "checkpoints" / "checkpoint-2" / "model.safetensors")
    found = weights(run)
    assert best.keys() == found.keys()
    assert all(torch.equal(best[name], found[name]) for name in best)
