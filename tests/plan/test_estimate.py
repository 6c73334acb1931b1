"""What settings change of the memory, and where the numbers of a plan come from."""

import json
from typing import Any

import pytest

from helpers.paths import ROOT
from recipes import OBJECTIVES
from runner.config.recipes.cards import CARDS, sized
from runner.config.settings import RunConfig
from runner.plan.estimate import Case, make_case, optimizer_steps
from runner.plan.families import from_facts
from runner.plan.fit import best_setting, covering_length

LORA = {"_target_": "peft.LoraConfig", "r": 16, "target_modules": "all-linear"}
NF4 = {"_target_": "transformers.BitsAndBytesConfig", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GIB = 2**30


def case(
    model: str = "qwen3-1.7b",
    recipe: str = "sft",
    length: int = 1024,
    lora: dict[str, Any] | None = None,
    quantization: dict[str, Any] | None = None,
    speed: dict[str, Any] | None = None,
    cells: int = 1,
    **trainer: Any,
) -> Case:
    architecture = from_facts(json.loads((ROOT / f"runner/models/architectures/{model}.json").read_text()))
    assert architecture is not None
    settings = {"per_device_train_batch_size": 4, "optim": "adamw_torch_fused", **trainer}
    config = RunConfig.of(
        {
            "recipe": "plan",
            "trainer": settings,
            "lora": LORA if lora is None else lora,
            "quantization": quantization or {},
            "speed": speed or {},
            "plan": {"cells": cells},
        }
    )
    return make_case(config, OBJECTIVES[recipe], recipe, architecture, length)


PLAIN = dict.fromkeys(("chunked_loss", "compile", "cuda_graphs", "padding_free", "async_logging"), False)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({}, {"quantization": NF4}),
        ({}, {"gradient_checkpointing": True}),
        ({}, {"speed": {"activation_memory_budget": 0.3}}),
        ({"speed": PLAIN}, {}),
        ({"lora": LORA | {"use_dora": True}}, {}),
        ({"lora": LORA | {"lora_dropout": 0.1}}, {}),
        ({"cells": 4}, {}),
        ({"recipe": "dpo"}, {}),
        ({"lora": {}}, {"lora": {}, "optim": "sgd"}),
        ({"optim": "adamw_torch"}, {"optim": "adamw_8bit"}),
        ({"recipe": "orpo", "speed": PLAIN}, {"speed": PLAIN}),
        ({"lora": {}, "recipe": "dpo"}, {"lora": {}}),
    ],
)
def test_what_takes_more(more: dict[str, Any], less: dict[str, Any]) -> None:
    first, second = case(**more).memory().total, case(**less).memory().total
    assert first > second


@pytest.mark.parametrize(("batch", "length"), [(1, 512), (4, 1024), (16, 2048)])
def test_batch_and_length_count_as_tokens(batch: int, length: int) -> None:
    one = case(length=1024, per_device_train_batch_size=1).memory()
    other = case(length=length, per_device_train_batch_size=batch).memory()
    times = batch * length / 1024
    assert other.parts["activations"] == pytest.approx(times * one.parts["activations"], rel=0.03)
    assert other.parts["base"] == one.parts["base"]


def test_a_recorded_reference_has_memory_of_its_own() -> None:
    assert case(recipe="dpo").memory().parts["reference"] > 0
    assert "reference" not in case(recipe="dpo", speed=PLAIN).memory().parts
    assert "reference" not in case().memory().parts


def test_rows_of_recorded_steps_are_filled_up() -> None:
    sizes = [case(length=length).memory().parts["activations"] for length in (1100, 1152, 1153)]
    assert sizes[0] == sizes[1] < sizes[2]
    plain = [case(length=length, speed=PLAIN).memory().parts["activations"] for length in (1100, 1152)]
    assert plain[0] < plain[1]


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    found, card = case("qwen3-4b", quantization=NF4), CARDS["rtx3090"]
    most = found.largest_batch(card)
    assert most > 1
    assert found.changed(per_device_train_batch_size=most).fits(card)
    assert not found.changed(per_device_train_batch_size=most + 1).fits(card)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("gib", [12, 16, 24, 40, 80])
@pytest.mark.parametrize("quantization", [{}, NF4])
def test_advice_fits_and_keeps_the_rows_of_a_step(gib: int, quantization: dict[str, Any]) -> None:
    found = case("qwen3-8b", quantization=quantization, gradient_accumulation_steps=4, length=2048)
    setting = best_setting(found, sized(gib))
    if setting is None:
        assert gib == 12
        return
    step = setting.case.step()
    assert setting.case.memory().total <= 0.95 * gib * GIB
    assert step.batch * step.accumulation == 16
    assert set(setting.reasons) <= set(setting.overrides)


def test_nothing_fits_where_the_weights_do_not() -> None:
    assert best_setting(case("qwen3-8b", lora={}), sized(24)) is None


def test_a_base_is_not_rounded_where_it_fits() -> None:
    setting = best_setting(case("qwen3-4b", length=512), CARDS["rtx4090"])
    assert setting is not None
    assert "quantization" not in setting.overrides


def test_an_adapter_is_not_put_on_a_quantised_base_that_is_trained() -> None:
    setting = best_setting(case("qwen3-0.6b", lora={}, length=512), sized(16))
    assert setting is None or "quantization" not in setting.overrides


def test_time_of_a_step() -> None:
    card = CARDS["h200"]
    one, four = (case(length=2048, per_device_train_batch_size=rows).duration(card) for rows in (1, 4))
    again = case(length=2048, gradient_checkpointing=True).duration(card)
    assert one is not None
    assert four is not None
    assert again is not None
    assert one.step < four.step < 4 * one.step
    assert four.step < again.step < 1.5 * four.step
    assert case(gradient_accumulation_steps=4).duration(card).step == 4 * case().duration(card).step  # type: ignore[union-attr]
    assert case().duration(sized(24)) is None


@pytest.mark.parametrize(("epochs", "steps"), [(1.3, 10), (2.3, 17), (2, 14), (0.01, 1)])
def test_a_part_of_an_epoch_has_the_steps_that_the_trainer_counts(epochs: float, steps: int) -> None:
    found = case(per_device_train_batch_size=8, gradient_accumulation_steps=2, num_train_epochs=epochs)
    assert optimizer_steps(found.config, 100) == steps


def test_the_length_that_covers_most_rows() -> None:
    assert covering_length(tuple(range(1, 1001))) == 991
    assert covering_length((5,)) == 5
