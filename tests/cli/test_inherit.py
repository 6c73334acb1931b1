"""What a command with an adapter takes over from the run that made it."""

import pytest

from helpers.command import TINY
from recipes import OBJECTIVES
from runner.cli import run_config


def composed(*words: str):
    (run,) = run_config.check(run_config.parse(list(words), OBJECTIVES)).configs
    return run


def test_the_base_and_the_template_come_with_the_adapter(parent):
    parent(*TINY, "template=alpaca", "lora=r8", "seed=3")
    run = composed("recipe=dpo", "adapter=start")
    assert (run.model.architecture, run.model.weights, run.seed) == ("tiny", "random", 3)
    assert run.template.chat_template is not None
    assert run.lora["r"] == 8
    assert run.data.path == "embedded:orders_pairs_train"
    assert run.trainer["learning_rate"] == 5e-5


def test_a_recipe_that_does_not_train_takes_the_rows_too(parent):
    parent(*TINY)
    run = composed("recipe=evaluate", "adapter=start")
    assert run.data.max_rows == 24
    assert composed("recipe=evaluate", "adapter=start/adapter").data.max_rows == 24


def test_what_the_command_line_says_wins(parent):
    parent(*TINY)
    run = composed("recipe=evaluate", "adapter=start", "model=qwen3-4b", "seed=5", "data.max_rows=7")
    assert run.model.architecture == "qwen3-4b"
    assert (run.seed, run.data.max_rows) == (5, 7)


def test_an_adapter_that_was_saved_for_the_original_base_can_be_used(parent):
    """Its rank is twice that of the run, and the alpha of rsLoRA no whole number."""
    parent(*TINY, "lora=pissa", "lora.use_rslora=true", "trainer.max_steps=1")
    lora = composed("recipe=evaluate", "adapter=start").lora
    assert (lora["r"], lora["lora_alpha"]) == (32, pytest.approx(16 * 2**0.5))


def test_an_adapter_folder_alone_still_names_its_base(parent, tmp_path):
    parent(*TINY)
    (tmp_path / "start/adapter").rename(tmp_path / "alone")
    run = composed("recipe=chat", "adapter=alone")
    assert run.model.architecture == "tiny"
    assert run.lora["r"] == 16


def test_an_experiment_keeps_its_own_choice(parent):
    parent(*TINY)
    run = composed(
        "recipe=dpo", "adapter=start", "experiment=qwen3-4b-qlora", "data=orders-pairs", "data.eval_path=null"
    )
    assert run.model.architecture == "qwen3-4b"
    assert run.quantization
