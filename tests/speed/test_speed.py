"""The pieces of ``speed``: each keeps the result of the library's own step, and the run says which are on."""

from __future__ import annotations

import pytest
import torch

from helpers.command import Run
from helpers.tiny_model import random_model, using
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.models.model import byte_tokenizer
from runner.speed import pieces as module
from runner.speed.decoder import bucket
from runner.speed.pieces import Pieces
from runner.sweep.packable import reasons_alone
from runner.training import setup

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


@pytest.mark.slow  # on rows of more uneven length, test_flat_runs.py has it
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_has_the_losses_of_the_librarys_own_step(cli, dropout):
    shared = (*UNEVEN, f"lora.lora_dropout={dropout}")
    fast, plain = (losses(cli(*shared, f"speed={speed}", folder=speed)) for speed in ("auto", "plain"))
    assert len(fast) == 20
    assert fast[-1] < fast[0] - 0.1  # it has learned
    assert fast == pytest.approx(plain, abs=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
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
    on = Pieces(chunked_loss=True, compile=True, cuda_graphs=True, async_logging=True)
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


def test_plain_is_the_librarys_loss(cli, monkeypatch):
    def ours(*args, **kwargs):
        raise AssertionError("our loss")

    monkeypatch.setattr("runner.training.sft.token_logprobs", ours)
    assert cli(*UNEVEN, "trainer.max_steps=1", "speed=plain").code == 0
    assert cli(*UNEVEN, "trainer.max_steps=1", folder="auto").code == 1


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("lora=none",), "every weight is trained, the head's too"),
        (("lora=prompt",), "prompt learning has tokens of its own"),
        (("lora.modules_to_save=[lm_head]",), "the output head is not a plain frozen linear layer"),
        (("trainer.packing=true", "trainer.max_length=256"), "trainer.packing"),
        (("trainer.loss_type=dft",), "trainer.loss_type=dft"),
    ],
)
def test_why_the_loss_is_the_librarys_is_said_once_and_recorded(cli, capsys, words, reason):
    run = cli(*UNEVEN, "trainer.max_steps=1", *words)
    said = " ".join(capsys.readouterr().out.split())
    assert run.record["speed"]["chunked_loss"] is False
    assert run.record["speed"]["off"]["chunked_loss"] == reason
    assert said.count(reason) == 1
    assert not [note for note in run.record["notes"] if "speed" in note]


@pytest.mark.slow
def test_logits_that_are_changed_behind_the_head_are_left_to_the_library(cli, tmp_path):
    random_model(tmp_path / "gemma", "gemma2")
    byte_tokenizer().save_pretrained(tmp_path / "gemma")
    run = cli(*UNEVEN[1:], "trainer.max_steps=1", "trainer.max_length=512", *using(tmp_path / "gemma"))
    assert run.record["speed"]["off"]["chunked_loss"] == (
        "the model changes its logits (final_logit_softcapping)"
    )


def test_a_pack_is_not_asked_for_the_librarys_loss():
    command = run_config.parse(["-m", *UNEVEN, "lora.r=4,8", "speed=plain"], OBJECTIVES)
    for config in run_config.check(command).configs:
        assert next(reasons_alone(config)).startswith("speed.chunked_loss=false")


def test_a_budget_for_layers_that_are_not_compiled_is_refused(cli, capsys):
    assert cli("model=tiny", "speed=plain", "speed.activation_memory_budget=0.5").code == 2
    assert "activation_memory_budget has no effect with speed.compile=false" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("late", "words", "waits"),
    [
        (True, (), False),
        (False, (), True),
        (True, ("+trainer.accelerator_config={non_blocking:false}",), True),
    ],
)
def test_a_step_that_is_logged_late_does_not_wait_for_its_batch(monkeypatch, tmp_path, late, words, waits):
    monkeypatch.setattr(setup, "choose_pieces", lambda *_: Pieces(chunked_loss=True, async_logging=late))
    (config,) = run_config.check(run_config.parse(["model=tiny", *words], OBJECTIVES)).configs
    arguments = setup.check_training(config, OBJECTIVES["sft"], tmp_path).arguments
    assert arguments.accelerator_config.non_blocking is not waits


def test_a_recipe_that_trains_nothing_has_no_speed(cli, capsys):
    assert cli("recipe=evaluate", "model=tiny", "speed=plain").code == 2
    assert "speed.chunked_loss has no effect with recipe=evaluate" in capsys.readouterr().err


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
