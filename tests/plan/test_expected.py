"""What a run says before it is loaded of its memory and time, and what is refused there."""

import dataclasses
import json
import shlex
from typing import Any

import pytest

from helpers.command import TINY
from helpers.paths import ROOT
from recipes import OBJECTIVES
from runner.config.recipes.cards import CARDS, Card
from runner.config.settings import RunConfig
from runner.core.errors import ConfigError
from runner.plan.expected import Expected, Place, Rows, expected
from runner.plan.families import from_facts
from runner.speed.pieces import NAMES, Pieces
from runner.training import load

GIB = 2**30
ROWS = Rows(100, 2048, 2048.0)
ON_CUDA = Pieces(**dict.fromkeys((name for name in NAMES if name != "cpu_kernels"), True))
LORA = {"_target_": "peft.LoraConfig", "r": 16, "target_modules": "all-linear"}

NF4 = {"_target_": "transformers.BitsAndBytesConfig", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


FACTS = json.loads((ROOT / "runner/models/architectures/qwen3-4b.json").read_text())


def ask(
    facts: dict[str, Any],
    rows: Rows = ROWS,
    pieces: Pieces = ON_CUDA,
    free: float = 140 * GIB,
    cells: int = 1,
    **sections: Any,
) -> Expected | None:
    trainer = {"per_device_train_batch_size": 4, **sections.pop("trainer", {})}
    values = {"recipe": "sft", "lora": LORA, **sections, "trainer": trainer}
    architecture = from_facts(facts)
    assert architecture is not None
    place = Place(CARDS["h200"], round(free))
    config = RunConfig.of(values)
    step = ("bf16", pieces)
    return expected(config, OBJECTIVES["sft"], architecture, rows, place, step, 10, cells=(cells, None))


def found(*args: Any, **more: Any) -> Expected:
    said = ask(FACTS, *args, **more)
    assert said is not None
    return said


def test_processes_share_the_memory_of_a_machine_but_have_a_gpu_each() -> None:
    two = {"parallel": {"engine": "ddp", "num_processes": 2}, "lora": LORA, "recipe": "sft"}
    config = RunConfig.of({**two, "trainer": {"per_device_train_batch_size": 4}})
    architecture = from_facts(FACTS)
    assert architecture is not None
    here = expected(config, OBJECTIVES["sft"], architecture, ROWS, Place(None, 64 * GIB, has=GIB))
    assert here is not None
    assert here.needed == 2 * here.peak
    assert here.line().startswith(f"about {here.needed / GIB:.1f} GiB of memory at the peak of 2 processes")
    assert here.record().items() >= {"peak_bytes": here.peak, "processes": 2}.items()

    there = found(parallel=two["parallel"])
    assert there.needed == there.memory.total > there.peak
    assert f"{there.peak / GIB:.1f} GiB at the peak of each GPU" in there.line()
    assert "processes" not in found().record()


def test_a_gpu_without_the_format_is_refused() -> None:
    fp8 = {"_target_": "runner.models.fp8.Fp8Config"}
    said = found(quantization=fp8)
    assert said.misfit() is None
    lacks = dataclasses.replace(said, place=Place(CARDS["a100"], 80 * GIB)).misfit()
    assert lacks is not None
    assert (lacks.where, lacks.message) == ("quantization=fp8", "a100 has no e4m3")


def test_a_checkpoint_in_a_format_of_unknown_size_is_not_judged() -> None:
    for quantization, known in ((None, True), ({"quant_method": "gptq", "bits": 4}, False)):
        given = FACTS | ({"quantization_config": quantization} if quantization else {})
        assert (ask(given) is not None) == known


def refusal(said: Expected) -> str:
    with pytest.raises(ConfigError) as caught:
        said.check_fits()
    return str(caught.value.issues[0].hint)


@pytest.mark.parametrize("gib", [24, 12])
def test_what_cannot_fit_is_refused_with_settings_that_do(gib: int) -> None:
    hint = refusal(found(free=gib * GIB))
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
    assert "smaller model" in refusal(found(free=GIB))


def test_an_estimate_that_is_a_tenth_too_large_refuses_nothing_that_fits() -> None:
    need = found().memory.allocated
    found(free=need / 1.1).check_fits()
    refusal(found(free=need / 1.5))


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"device_map": "auto"}},
        {"trainer": {"activation_offloading": True}},
        {"on_oom": "shrink"},  # a batch of one fits
        {"plan": {"check": False}},
    ],
)
def test_what_may_fit_in_another_way_is_not_refused(sections: dict[str, Any]) -> None:
    refusal(found(free=20 * GIB))
    found(free=20 * GIB, **sections).check_fits()


def test_one_long_row_does_not_count_for_all() -> None:
    outlier = Rows(100, 8192, 100.0)
    assert found(outlier).peak < 0.6 * found(Rows(100, 8192, 8192.0)).peak
    eager = dataclasses.replace(ON_CUDA, padding_free=False)
    assert found(outlier, eager).peak > 1.5 * found(outlier).peak  # rows are padded to the longest
    found(outlier, eager, free=50 * GIB).check_fits()  # but need not meet it in a full batch


def test_rows_that_are_not_read_yet_refuse_what_has_no_room_for_the_weights_alone() -> None:
    unread = Rows(2**31, 40_000, 40_000.0, known=False)
    found(unread, free=20 * GIB).check_fits()
    assert "up to" in found(unread).line()
    refusal(found(unread, free=4 * GIB))


def test_a_pack_is_refused_only_where_not_even_one_cell_a_pass_fits() -> None:
    room = 1.3 * found(free=0).memory.total
    pack = found(cells=8, free=room)
    assert pack.cells_per_pass == 1
    pack.check_fits()
    assert found(cells=8).cells_per_pass > 1
    assert found(cells=8).record()["cells_per_pass"] == found(cells=8).cells_per_pass
    hint = refusal(found(cells=8, free=0.5 * room))
    assert "=" in hint.partition(";")[0]


def test_a_pack_takes_the_time_of_all_its_passes() -> None:
    one, eight = found(), found(cells=8, free=1.3 * found().memory.total)
    assert eight.step_seconds == pytest.approx(8 * (one.step_seconds or 0), rel=0.3)


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


@pytest.mark.slow
def test_the_command_of_a_refusal_runs(cli, capsys, monkeypatch) -> None:
    monkeypatch.setattr(load, "cuda_card", lambda: Card("small", GIB))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (GIB, GIB))
    large = "trainer.per_device_train_batch_size=480"
    assert cli(*TINY, "data.max_rows=480", "trainer.max_steps=1", "speed=plain", large).code == 2
    said = capsys.readouterr().err
    fits = shlex.split(" ".join(said.partition("python -m runner")[2].partition(";")[0].split()))
    assert fits
    assert large not in fits
    assert cli(*fits).code == 0


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
