"""What a run says before it is loaded of its memory and time, and what is refused there."""

import dataclasses
import json
from typing import Any

import pytest

from helpers.command import TINY
from helpers.paths import ROOT
from recipes import OBJECTIVES
from runner.config.recipes.cards import CARDS, Card
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError
from runner.plan.expected import Expected, Rows, expected
from runner.speed.pieces import NAMES, Pieces
from runner.training import load

GIB = 2**30
ROWS = Rows(100, 2048, 2048.0)
ON_CUDA = Pieces(**dict.fromkeys((name for name in NAMES if name != "cpu_kernels"), True))
LORA = {"_target_": "peft.LoraConfig", "r": 16, "target_modules": "all-linear"}

NF4 = {"_target_": "transformers.BitsAndBytesConfig", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def found(rows: Rows = ROWS, pieces: Pieces = ON_CUDA, **sections: Any) -> Expected:
    trainer = {"per_device_train_batch_size": 4, **sections.pop("trainer", {})}
    values = {"recipe": "sft", "lora": LORA, **sections, "trainer": trainer}
    facts = json.loads((ROOT / "runner/models/architectures/qwen3-4b.json").read_text())
    said = expected(
        *(RunConfig.of(values), OBJECTIVES["sft"], facts, ("bf16", pieces), rows, 10, None, CARDS["h200"])
    )
    assert said is not None
    return said


def test_a_checkpoint_in_a_format_of_unknown_size_is_not_judged() -> None:
    facts = json.loads((ROOT / "runner/models/architectures/qwen3-4b.json").read_text())
    config = RunConfig.of({"recipe": "sft", "lora": LORA})
    for quantization, known in ((None, True), ({"quant_method": "gptq", "bits": 4}, False)):
        given = facts | ({"quantization_config": quantization} if quantization else {})
        step = ("bf16", ON_CUDA)
        said = expected(config, OBJECTIVES["sft"], given, step, ROWS, 10, None, CARDS["h200"])
        assert (said is not None) == known


def refusal(said: Expected, free: float) -> str:
    with pytest.raises(ConfigError) as caught:
        said.check_fits(round(free))
    return str(caught.value.issues[0].hint)


@pytest.mark.parametrize("gib", [24, 12])
def test_what_cannot_fit_is_refused_with_settings_that_do(gib: int) -> None:
    hint = refusal(found(), gib * GIB)
    assert "plan.check=false" in hint
    sections: dict[str, Any] = {}
    for word in hint.partition(";")[0].split():
        key, value = word.split("=")
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = json.loads(value) if name else value
    if sections.pop("quantization", None):
        sections["quantization"] = NF4
    budget = sections.get("speed", {}).get("activation_memory_budget", 1.0)
    checkpoints = sections.get("trainer", {}).get("gradient_checkpointing")
    pieces = dataclasses.replace(ON_CUDA, activation_memory_budget=0.0 if checkpoints else budget)
    assert sections
    assert found(pieces=pieces, **sections).memory.total <= gib * GIB


def test_where_nothing_fits_it_says_so() -> None:
    assert "smaller model" in refusal(found(), GIB)


def test_an_estimate_that_is_a_tenth_too_large_refuses_nothing_that_fits() -> None:
    said = found()
    said.check_fits(round(said.memory.allocated / 1.1))
    refusal(said, said.memory.allocated / 1.5)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"device_map": "auto"}},
        {"trainer": {"activation_offloading": True}},
        {"on_oom": "shrink"},  # a batch of one fits
    ],
)
def test_what_may_fit_in_another_way_is_not_refused(sections: dict[str, Any]) -> None:
    free = 20 * GIB
    refusal(found(), free)
    found(**sections).check_fits(free)


def test_one_long_row_does_not_count_for_all() -> None:
    outlier = Rows(100, 8192, 100.0)
    assert found(outlier).peak < 0.6 * found(Rows(100, 8192, 8192.0)).peak
    padded = found(outlier, pieces=dataclasses.replace(ON_CUDA, padding_free=False))
    assert padded.peak > 1.5 * found(outlier).peak  # rows are padded to the longest
    padded.check_fits(50 * GIB)  # but need not meet it in a full batch


def test_time_counts_every_pass_of_a_step() -> None:
    longer = found(trainer={"gradient_accumulation_steps": 2}).seconds
    assert longer == pytest.approx(2 * (found().seconds or 0), rel=0.05)


def test_a_run_says_and_records_it_and_compares_it(cli, capsys) -> None:
    run = cli(*TINY)
    record = json.loads((run.folder / "run.json").read_text())
    assert run.code == 0
    assert "estimates" in capsys.readouterr().out
    assert record["predicted"]["peak_bytes"] > 2**27
    assert record["predicted"]["measured_peak_bytes"] == record["metrics"]["peak_memory_bytes"]


def test_a_run_that_cannot_fit_is_refused_before_weights_are_loaded(cli, capsys, monkeypatch) -> None:
    monkeypatch.setattr(load, "cuda_card", lambda: Card("small", GIB))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (2**16, GIB))
    monkeypatch.setattr("recipes.train.load_trainable", lambda *_: pytest.fail("weights were loaded"))
    run = cli(*TINY)
    assert run.code == 2
    assert "plan.check=false" in capsys.readouterr().err


def test_it_can_be_tried_anyway(cli, monkeypatch) -> None:
    monkeypatch.setattr(load, "cuda_card", lambda: Card("small", GIB))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (2**16, GIB))
    assert cli(*TINY, "plan.check=false").code == 0


def test_other_keys_of_the_plan_have_no_effect_on_a_run(cli, capsys) -> None:
    assert cli(*TINY, "plan.gpu=h100").code == 2
    assert "plan.gpu has no effect" in capsys.readouterr().err


def test_a_benchmark_can_be_tried_anyway_too(cli, capsys) -> None:
    cli("recipe=benchmark", "model=tiny", "plan.check=false", "against=nobody")
    said = capsys.readouterr().err
    assert "unknown 'nobody'" in said
    assert "plan.check" not in said
