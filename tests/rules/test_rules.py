"""The hyper-parameter rules: what departs, what is usual, and that its override ends a departure."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command import one
from runner.config.recipe_rules import recipe_names
from runner.config.targets import target_fields
from runner.core.paths import PACKAGE
from runner.rules.bands import number
from runner.rules.page import page, table_lines
from runner.rules.rulebook import RULES, departures

KNOWN = {"rows": 440, "parameters": 135 * 10**6}  # of the default job

# What departs, the words that do, and what is known beside them; the value, what is usual, and the override.
DEPARTS = """
learning rate: trainer.learning_rate=1e-2
    0.01 | 1e-5 to 2e-3 | trainer.learning_rate=2e-4
learning rate: trainer.learning_rate=1e-3; parameters=7B
    1e-3 | 1e-5 to 5e-4 | trainer.learning_rate=2e-4
learning rate: trainer.learning_rate=3e-4; parameters=65B
    3e-4 | 1e-5 to 2e-4 | trainer.learning_rate=1e-4
learning rate: lora=none trainer.learning_rate=2e-4; parameters=7B
    2e-4 | 1e-6 to 5e-5 | trainer.learning_rate=2e-5
learning rate: lora=none trainer.learning_rate=2e-3
    2e-3 | 1e-6 to 1e-3 | trainer.learning_rate=2e-5
learning rate: recipe=dpo trainer.learning_rate=2e-4
    2e-4 | 1e-6 to 5e-5 | trainer.learning_rate=5e-6
learning rate: recipe=dpo lora=none
    5e-5 | 1e-7 to 5e-6 | trainer.learning_rate=5e-7
learning rate: recipe=kto trainer.learning_rate=1e-4
    1e-4 | 5e-7 to 5e-5 | trainer.learning_rate=5e-6
learning rate: recipe=kto lora=none
    5e-5 | 5e-7 to 5e-6 | trainer.learning_rate=1e-6
learning rate: recipe=orpo
    2e-4 | 5e-6 to 1e-4 | trainer.learning_rate=8e-5
learning rate: recipe=orpo lora=none
    2e-4 | 1e-6 to 1e-5 | trainer.learning_rate=8e-6
learning rate: recipe=reward trainer.learning_rate=1e-3
    1e-3 | 1e-5 to 5e-4 | trainer.learning_rate=1e-4
learning rate: recipe=reward lora=none
    2e-4 | 1e-6 to 5e-5 | trainer.learning_rate=1e-5
learning rate: lora=ia3 trainer.learning_rate=2e-4
    2e-4 | 1e-3 to 0.01 | trainer.learning_rate=3e-3
learning rate: lora=prompt trainer.learning_rate=2e-4
    2e-4 | 1e-3 to 0.3 | trainer.learning_rate=0.02
adapter scale: lora.lora_alpha=65
    4.06 (lora_alpha=65 / r=16) | 0.25 to 4 | lora.lora_alpha=32
adapter scale: lora.r=64 lora.lora_alpha=15
    0.234 (lora_alpha=15 / r=64) | 0.25 to 4 | lora.lora_alpha=128
adapter scale: lora=rslora lora.lora_alpha=128
    16 (lora_alpha=128 / sqrt(r=64)) | 0.25 to 4 | lora.lora_alpha=16
adapter scale: lora=adalora lora.init_r=2 lora.target_r=2
    8 (lora_alpha=16 / init_r=2) | 0.25 to 4 | lora.lora_alpha=4
adapter scale: lora.r=64 ~lora.lora_alpha
    0.125 (lora_alpha=8 / r=64) | 0.25 to 4 | lora.lora_alpha=128
adapted layers: lora=attention-only
    attention only | all linear layers | lora.target_modules=all-linear
adapted layers: lora.target_modules=[q_proj,k_proj,v_proj,o_proj]
    attention only | all linear layers | lora.target_modules=all-linear
LoRA dropout: lora.lora_dropout=0.3
    0.3 | 0 to 0.1 | lora.lora_dropout=0.05
LoRA dropout: lora.lora_dropout=0.1; parameters=33B
    0.1 | 0 to 0.05 | lora.lora_dropout=0.05
epochs: trainer.num_train_epochs=20
    20 | 0 to 15 | trainer.num_train_epochs=3
epochs: trainer.num_train_epochs=5; rows=50000
    5 | 0 to 3 | trainer.num_train_epochs=2
epochs: trainer.max_steps=50000 trainer.per_device_train_batch_size=8; rows=50000
    8 | 0 to 3 | trainer.max_steps=12500
epochs: recipe=dpo trainer.num_train_epochs=4
    4 | 0 to 3 | trainer.num_train_epochs=1
epochs: recipe=reward trainer.num_train_epochs=2
    2 | 0 to 1 | trainer.num_train_epochs=1
warmup: trainer.warmup_steps=0.5
    50% of the steps | 0% to 10% | trainer.warmup_steps=0.03
warmup: trainer.warmup_steps=100; steps=200
    50% of the steps | 0% to 10% | trainer.warmup_steps=0.03
warmup: trainer.warmup_steps=30 trainer.max_steps=60
    50% of the steps | 0% to 10% | trainer.warmup_steps=0.03
effective batch: trainer.gradient_accumulation_steps=256
    512 rows a step | 1 to 128 | trainer.gradient_accumulation_steps=8
effective batch: trainer.per_device_train_batch_size=256
    256 rows a step | 1 to 128 | trainer.per_device_train_batch_size=16 trainer.gradient_accumulation_steps=1
effective batch: trainer.per_device_train_batch_size=2; rows=50000
    2 rows a step | 8 to 128 | trainer.gradient_accumulation_steps=8
effective batch: recipe=kto
    4 rows a step | 16 to 128 | trainer.gradient_accumulation_steps=4
weight decay: trainer.weight_decay=0.5
    0.5 | 0 to 0.1 | trainer.weight_decay=0
gradient clipping: trainer.max_grad_norm=0
    0 | 0.3 to 1 | trainer.max_grad_norm=1
gradient clipping: trainer.max_grad_norm=10
    10 | 0.3 to 1 | trainer.max_grad_norm=1
beta of DPO: recipe=dpo trainer.beta=2
    2 | 0.01 to 0.5 | trainer.beta=0.1
NEFTune noise: trainer.neftune_noise_alpha=100
    100 | 5 to 15 | trainer.neftune_noise_alpha=5
"""
# what is usual, or what nobody has said anything about
USUAL = [
    ["trainer.learning_rate=2e-3"],  # a model of unknown size
    ["lora=none", "trainer.learning_rate=2e-5"],
    ["lora.r=64", "lora.lora_alpha=16"],  # as in QLoRA
    ["lora.r=8", "lora.lora_alpha=32"],  # as in PEFT's quicktour
    ["lora=prefix"],
    ["lora.target_modules=[q_proj,v_proj,up_proj]"],
    ["lora.target_modules='.*_proj'"],
    ["trainer.warmup_steps=300"],  # of how many
    ["trainer.warmup_steps=0.5", "trainer.lr_scheduler_type=constant"],
    ["trainer.max_steps=100000"],  # of how many rows
    ["trainer.optim=adafactor", "trainer.learning_rate=1"],
    ["recipe=dpo", "trainer.loss_type=[ipo]", "trainer.beta=2"],
    ["recipe=dpo", "trainer.num_train_epochs=3"],
]


def cases():
    """The entries of ``DEPARTS``: rule, words, known facts, value, usual, override."""
    lines = DEPARTS.strip().splitlines()
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        about, _, rest = first.partition(": ")
        words, _, known = rest.partition("; ")
        facts = dict(word.split("=") for word in known.split())
        numbers = {name: int(value.replace("B", "000000000")) for name, value in facts.items()}
        yield (about, words.split(), numbers, *map(str.strip, second.split(" | ")))


def found(words, **known):
    return by_name(departures(one(*words), **known))


def by_name(each):
    return {departure.about: departure for departure in each}


def followed(config, overrides):
    """The config with overrides of its library sections."""
    for word in overrides.split():
        key, _, text = word.partition("=")
        section, _, name = key.partition(".")
        values = getattr(config, section)
        assert name in target_fields(section, values["_target_"])
        value = float(text) if text[0].isdigit() else text
        config = replace(config, **{section: {**values, name: value}})
    return config


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("about", "words", "known", "value", "usual", "override"), cases())
def test_a_departure_is_said_and_its_override_ends_it(about, words, known, value, usual, override):
    config = one(*words)
    each = by_name(departures(config, **known))[about]
    assert (each.value, each.usual, each.override) == (value, usual, override)
    rule = next(rule for rule in RULES if rule.about == about)
    assert (each.key, each.why) == (rule.key, rule.why)
    assert each.source in {band.source for band in rule.bands}
    assert about not in by_name(departures(followed(config, override), **known))


def test_every_band_of_every_rule_is_tried():
    usual = {(about, said) for about, _, _, _, said, _ in cases()}
    wanted = {(rule.about, rule.usual(band)) for rule in RULES for band in rule.bands}
    assert wanted == usual


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", USUAL, ids=" ".join)
def test_what_is_usual_or_unknown_is_passed_over(words):
    assert not found(words)


def test_a_packed_sequence_holds_rows_that_nobody_has_counted():
    words = ["trainer.max_steps=50000", "trainer.packing=true"]
    assert "epochs" not in found(words, rows=100)
    assert "epochs" in found(words[:1], rows=100)


@pytest.mark.parametrize("recipe", ["sft", "dpo", "kto", "orpo", "reward"])
def test_the_defaults_depart_only_where_their_libraries_say_so(recipe):
    departs = {"kto": {"effective batch"}, "orpo": {"learning rate"}}.get(recipe, set())
    assert set(found([f"recipe={recipe}"], **KNOWN)) == departs


# As published: the larger models of one document have batches of one, accumulated over four, and another
# document adapts attention alone.
_DEPART = {
    "qwen-14b-chat-qlora": {"effective batch"},
    "llama2-13b-chat-qlora": {"effective batch"},
    "qwen3-4b-qlora": {"adapted layers"},
}


@pytest.mark.slow
def test_the_experiments_are_usual(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    departures = {}
    for file in (PACKAGE.parent / "conf" / "experiment").glob("*-*b*.yaml"):
        if file.stem.endswith("-chain"):  # whose stages are experiments of their own
            continue
        words = [f"experiment={file.stem}", "data.path=rows.jsonl"]
        text = file.read_text(encoding="utf-8")
        own_rows = "eval_path: ???" in text or "- qwen-7b-chat-qlora" in text
        words += ["data.eval_path=rows.jsonl"] * own_rows
        departs = found(words, rows=20_000, steps=1250, parameters=7 * 10**9)
        departures[file.stem] = set(departs)
    assert {name: each for name, each in departures.items() if each} == _DEPART


def test_a_recipe_that_only_measures_is_judged_as_the_one_it_measures():
    words = ["trainer=dpo", "data=orders-pairs", "trainer.learning_rate=2e-4"]
    assert found(["recipe=benchmark", *words])["learning rate"].usual == "1e-6 to 5e-5"


def test_the_table_keeps_to_its_width_and_begins_with_the_value():
    words = ["trainer.learning_rate=1e-2", "lora.lora_alpha=65", "lora.target_modules=[q_proj]"]
    lines = table_lines(departures(one(*words)))
    assert max(map(len, lines)) <= 80
    assert lines[0] == "learning rate   0.01, usual is 1e-5 to 2e-3: trainer.learning_rate=2e-4"
    assert sum(not line.startswith(" ") for line in lines) == 3
    assert table_lines([]) == []


def test_the_page_in_docs_is_made_of_the_rules():
    text = (PACKAGE.parent / "docs" / "rules.md").read_text(encoding="utf-8")
    assert text == page(), "python -m runner.rules.page > docs/rules.md"
    assert all(name in recipe_names() for rule in RULES for band in rule.bands for name in band.recipes)


def test_no_library_is_imported_for_it():
    heavy = "{'torch', 'transformers', 'peft', 'trl'}"
    code = f"import sys, runner.rules.page; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-4, "2e-4"), (1.5e-7, "1.5e-7"), (0.03, "0.03"), (1024, "1024"), (0, "0"), (4.0625, "4.06")],
)
def test_numbers_are_written_as_they_are_typed(value, text):
    assert number(value) == text
