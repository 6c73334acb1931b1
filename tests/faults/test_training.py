"""Rows 23 to 26: a run that diverges, runs out of memory or out of disk says so, and keeps what was good."""

from __future__ import annotations

import gc
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command import TINY
from runner.runs import checkpoint
from runner.runs.checkpoint import newest, verify
from runner.training.sft import GuardedSFTTrainer

SAVING = (*TINY, "trainer.max_steps=4", "trainer.save_strategy=steps", "trainer.save_steps=1")
QUIET = ("generation.samples=0", "data.metric=null")
EIGHT = (*TINY, *QUIET, "trainer.per_device_train_batch_size=8", "trainer.per_device_eval_batch_size=2")


def weights(folder: str) -> bytes:
    return (Path(folder) / "adapter" / "adapter_model.safetensors").read_bytes()


def spoil(patch: pytest.MonkeyPatch, what: str) -> None:
    """Make the loss, the gradient or a weight of the third step not finite."""
    step, save = GuardedSFTTrainer.training_step, GuardedSFTTrainer._save_checkpoint

    def training_step(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        if self.state.global_step == 2:
            parameter = next(p for p in model.parameters() if p.requires_grad)
            if what == "gradient":
                parameter.grad.view(-1)[7] = torch.inf
        return loss

    def compute_loss(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        return loss * torch.nan if what == "loss" and self.state.global_step == 2 else loss

    def save_checkpoint(self, model, trial):
        if what == "weight" and self.state.global_step == 3:
            next(p for p in model.parameters() if p.requires_grad).data.view(-1)[7] = torch.nan
        save(self, model, trial)

    original = GuardedSFTTrainer.compute_loss
    patch.setattr(GuardedSFTTrainer, "training_step", training_step)
    patch.setattr(GuardedSFTTrainer, "compute_loss", compute_loss)
    patch.setattr(GuardedSFTTrainer, "_save_checkpoint", save_checkpoint)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_23_what_is_not_finite_stops_the_run_at_that_step(cli, monkeypatch, capsys, what):
    spoil(monkeypatch, what)
    run = cli(*SAVING, *QUIET)
    assert (run.code, run.record["status"]) == (3, "diverged")
    assert "step 3" in run.record["error"]["message"]
    assert "step 3" in capsys.readouterr().err
    assert not (run.folder / "adapter").exists()
    last = newest(run.folder / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-2"


def test_24_an_absurd_learning_rate_is_flagged(cli, capsys):
    run = cli(*TINY, *QUIET, "trainer.learning_rate=1e9")
    said = " ".join(capsys.readouterr().out.split())
    assert "trainer.learning_rate=1e+09 is far above" in said
    assert any("far above" in note for note in run.record["notes"])


def test_24_a_loss_that_rises_is_flagged(cli, monkeypatch, capsys):
    compute = GuardedSFTTrainer.compute_loss

    def rising(self, *args, **kwargs):
        return compute(self, *args, **kwargs) * (1 + self.state.global_step)

    monkeypatch.setattr(GuardedSFTTrainer, "compute_loss", rising)
    run = cli(*TINY, *QUIET)
    assert run.code == 0
    assert any("the training loss rose from" in note for note in run.record["notes"])
    assert "the training loss rose from" in " ".join(capsys.readouterr().out.split())


def out_of_memory_above(patch: pytest.MonkeyPatch, rows: int, trainer: Any = GuardedSFTTrainer) -> None:
    compute = trainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > rows and self.state.global_step >= 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, model, inputs, *args, **kwargs)

    patch.setattr(trainer, "compute_loss", compute_loss)


def test_25_out_of_memory_says_what_to_change(cli, monkeypatch, capsys):
    out_of_memory_above(monkeypatch, 2)
    run = cli(*EIGHT)
    said = capsys.readouterr().err
    assert (run.code, run.record["status"]) == (1, "failed")
    for advice in (
        "trainer.per_device_train_batch_size=4 trainer.gradient_accumulation_steps=2",
        "on_oom=shrink",
        "trainer.gradient_checkpointing=true",
        "quantization=nf4",
    ):
        assert advice in said


@pytest.mark.slow
def test_25_shrinking_keeps_the_rows_of_a_step(cli, monkeypatch, capsys):
    words = (*EIGHT, "model.dtype=float64", "lora.lora_dropout=0", "on_oom=shrink")
    whole = cli(*words, folder="whole")
    out_of_memory_above(monkeypatch, 2)
    small = cli(*words, folder="small")
    assert small.code == 0
    ours, theirs = ([line for line in run.lines("metrics.jsonl") if "loss" in line] for run in (small, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert one["num_tokens"] == other["num_tokens"]
        assert one["learning_rate"] == other["learning_rate"]
    assert small.record["metrics"]["train_loss"] == pytest.approx(whole.record["metrics"]["train_loss"])
    said = " ".join(capsys.readouterr().out.split())
    for size, passes in ((4, 2), (2, 4)):
        remark = f"out of memory in step 2: {size} rows in {passes} passes a step"
        assert remark in said
        assert any(remark in note for note in small.record["notes"])
    assert len(cli(*words, "resume=auto", folder="small").record["metrics"]) > 5  # goes on as it was shrunk


@pytest.mark.slow
@pytest.mark.parametrize("early", ["true", "false"])
@pytest.mark.parametrize("start", ["lora=none", "adapter=start"])
def test_25_shrinking_keeps_the_reference(cli, parent, monkeypatch, start, early):
    """That of a smaller batch would be the model as it was when memory ran out."""
    from runner.training.dpo import GuardedDPOTrainer

    parent(*EIGHT, "lora.lora_dropout=0")
    more = (
        "trainer.warmup_steps=0",
        "trainer.learning_rate=0.01",
        "on_oom=shrink",
        f"trainer.precompute_ref_log_probs={early}",
    )
    words = ("recipe=dpo", start, *EIGHT, "data=orders-pairs", "data.metric=null", *more)
    whole = cli(*words, folder="whole")
    out_of_memory_above(monkeypatch, 8, GuardedDPOTrainer)  # a pair is two rows
    small = cli(*words, folder="small")
    assert any("4 rows in 2 passes" in note for note in small.record["notes"])
    ours, theirs = (
        [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line] for run in (small, whole)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert theirs[1] != pytest.approx(theirs[0], rel=1e-3)


def test_25_an_evaluation_shrinks_too(cli, monkeypatch):
    out_of_memory_above(monkeypatch, 1)
    one_by_one = ("trainer.per_device_train_batch_size=1", "trainer.per_device_eval_batch_size=4")
    run = cli(*TINY, *QUIET, *one_by_one, "on_oom=shrink")
    assert run.code == 0
    assert any("an evaluation: 1 rows at a time" in note for note in run.record["notes"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_25_shrinking_on_cuda(cli, capsys):
    """A real allocation that fails: the process may have 3 GiB."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total)
    words = ("model=qwen3-0.6b", "model.weights=random", "trainer.max_steps=3", *QUIET)
    big = ("trainer.per_device_train_batch_size=64", "trainer.per_device_eval_batch_size=1")
    try:
        assert cli(*words, *big, folder="stops").code == 1
        assert "on_oom=shrink" in capsys.readouterr().err
        torch.compiler.reset()  # what the first run has left: another process would begin without
        gc.collect()
        torch.cuda.empty_cache()
        run = cli(*words, *big, "on_oom=shrink")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.code == 0
    print(run.record["notes"])
    assert any("passes a step" in note for note in run.record["notes"])


@pytest.fixture
def full_disk():
    """Call it: from then on no file of this process may grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.report
def test_26_a_full_disk_leaves_the_last_checkpoint_intact(cli, monkeypatch, capsys, full_disk):
    whole = cli(*SAVING, *QUIET, folder="whole")
    step = GuardedSFTTrainer.training_step

    def fill(self, *args, **kwargs):
        if self.state.global_step == 2:
            full_disk(20_000)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedSFTTrainer, "training_step", fill)
        assert cli(*SAVING, *QUIET, folder="cut").code == 1
    full_disk(resource.RLIM_INFINITY)
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoint-3 could not be written, checkpoint-2 is intact" in said
    assert verify(Path("cut/checkpoints/checkpoint-2")) is None
    assert not (Path("cut/checkpoints") / checkpoint.TEMPORARY).exists()
    assert cli(*SAVING, *QUIET, "resume=auto", folder="cut").code == 0
    assert weights("cut") == weights("whole")
    assert whole.code == 0
