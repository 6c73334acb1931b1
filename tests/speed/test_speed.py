"""The pieces of ``speed``: each keeps the result of the library's own step, and the run says which are on."""

from __future__ import annotations

import pytest
import torch

from helpers.command import Run
from runner.speed import pieces as module
from runner.speed.decoder import bucket
from runner.speed.pieces import Pieces

# Dropout, accumulation and rows of uneven length.
UNEVEN = (
    "model=tiny",
    "trainer.precision=fp32",
    "data.max_rows=60",
    "data.eval_max_rows=8",
    "trainer.max_steps=20",
    "trainer.per_device_train_batch_size=4",
    "trainer.gradient_accumulation_steps=2",
    "trainer.learning_rate=3e-3",
    "generation.samples=0",
    "data.metric=null",
)


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line]


def without_times(run: Run) -> list[dict]:
    return [
        {key: value for key, value in line.items() if "second" not in key and "runtime" not in key}
        for line in run.lines("metrics.jsonl")
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_has_the_losses_of_the_librarys_own_step(cli, dropout):
    shared = (*UNEVEN, f"lora.lora_dropout={dropout}")
    fast, plain = (losses(cli(*shared, f"speed={speed}", folder=speed)) for speed in ("auto", "plain"))
    assert len(fast) == 20
    assert fast[-1] < fast[0] - 0.1  # it has learned
    assert fast == pytest.approx(plain, abs=1e-5)


def test_dpo_has_the_losses_of_the_librarys_own_step(cli):
    shared = (*UNEVEN, "recipe=dpo", "trainer.max_steps=6")
    fast, plain = (losses(cli(*shared, f"speed={speed}", folder=speed)) for speed in ("auto", "plain"))
    assert fast == pytest.approx(plain, abs=1e-5)
    assert fast[-1] != fast[0]


def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the log late here too, where nothing would be waited for."""
    reasons = module._reasons
    monkeypatch.setattr(
        module,
        "_reasons",
        lambda *args: (found for found in reasons(*args) if found != ("async_logging", "no CUDA device")),
    )


@pytest.mark.parametrize("every", [1, 3])
def test_a_log_that_is_read_late_is_the_same(cli, monkeypatch, every):
    shared = (*UNEVEN, "trainer.max_steps=7", f"trainer.logging_steps={every}", "trainer.eval_strategy=epoch")
    soon = cli(*shared, folder="soon")
    late(monkeypatch)
    run = cli(*shared, folder="late")
    assert run.record["speed"]["async_logging"] is True
    for one, other in zip(without_times(run), without_times(soon), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_a_step_that_diverges_is_named_by_a_late_log_too(cli, monkeypatch):
    late(monkeypatch)
    run = cli(*UNEVEN, "trainer.learning_rate=1e30", "trainer.max_grad_norm=0", "trainer.warmup_steps=0")
    assert run.code == 3
    assert "of step 2 is" in str(run.record["error"])
    assert not (run.folder / "adapter").exists()


def test_what_is_off_is_said_with_its_reason():
    on = Pieces(True, True, True, True)
    assert on.line() == "chunked_loss, compile, cuda_graphs, async_logging"
    less = on.without("compile", "no C compiler")
    assert less.line() == "chunked_loss, cuda_graphs, async_logging; compile off: no C compiler"
    assert on.without("chunked_loss", "why").line() == (
        "as the library computes it; chunked_loss, compile, cuda_graphs, async_logging off: why"
    )


def test_a_run_records_its_pieces(cli):
    run = cli(*UNEVEN, "trainer.max_steps=1", folder="run")
    assert run.record["speed"]["chunked_loss"] is True
    assert run.record["speed"]["cuda_graphs"] is torch.cuda.is_available()


@pytest.mark.parametrize("length", [1, 16, 17, 100, 128, 129, 300, 1024, 1500, 4000])
def test_a_bucket_holds_its_length_and_fills_an_eighth_at_most(length):
    assert length <= bucket(length) <= max(length * 1.125, length + 15)
    assert bucket(bucket(length)) == bucket(length)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("extra", ["lora.lora_dropout=0", "lora.lora_dropout=0.1", "quantization=nf4"])
def test_recorded_and_compiled_steps_on_cuda(cli, extra):
    shared = (*UNEVEN, "model=smollm2-135m", "model.weights=random", extra)
    fast, plain = (losses(cli(*shared, f"speed={speed}", folder=speed)) for speed in ("auto", "plain"))
    assert fast == pytest.approx(plain, abs=1e-5 if "nf4" not in extra else 5e-3)
