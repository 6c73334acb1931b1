"""An adapter that is damaged, incomplete, of another shape or not finite is used by no recipe."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.command import QUIET, TINY, one
from helpers.tiny_model import tiny_base
from runner.config.adapters import find_adapter
from runner.config.settings import ModelSettings
from runner.core.errors import ConfigError
from runner.core.process.folder_lock import hold
from runner.models import module_patterns
from runner.models.adapter import attach
from runner.models.adapter_fit import check_adapters, check_shape
from runner.models.model import find_base

pytestmark = pytest.mark.slow

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ENDLESS = "(.|.|.)*z"
BASE = ModelSettings(weights="random", architecture="tiny")

Change = Callable[[Path], object]


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def write(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return write


def values(**given: object) -> Change:
    def write(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps(found | given), encoding="utf-8")

    return write


def text(file: str, content: str) -> Change:
    return lambda folder: (folder / file).write_text(content, encoding="utf-8")


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def poisoned(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    held[FIRST][0, 0] = float("nan")
    return held


def without(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: held[name] for name in held if name != FIRST}


def replaced(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


@pytest.fixture
def alone(trained, tmp_path) -> Path:
    """An adapter's folder without the run around it."""
    return Path(shutil.copytree(trained(*TINY, *QUIET) / "adapter", tmp_path / "alone"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tensors(without), f"1 of its tensors that the base needs are not there, {FIRST}"),
        (tensors(lambda held: {}), "that the base needs are not there"),
        (tensors(lambda held: held | {FIRST.replace(".0.", ".9."): held[FIRST].clone()}), "have no place"),
        (tensors(poisoned), f"1 of its tensors hold NaN or infinity, {FIRST}"),
        (cut, f"{WEIGHTS}: is damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"holds no {WEIGHTS}"),
        (lambda folder: replaced(folder / WEIGHTS, os.mkfifo), f"{WEIGHTS}: is a named pipe, not a file"),
        (lambda folder: replaced(folder / WEIGHTS, Path.mkdir), f"{WEIGHTS}: is a folder, not a file"),
        (
            lambda folder: replaced(folder / WEIGHTS, lambda file: file.symlink_to("gone")),
            f"{WEIGHTS}: is a link that leads nowhere",
        ),
        (
            tensors(lambda held: {name: value.int() for name, value in held.items()}),
            "of its tensors hold int32",
        ),
        (values(r=4), "size mismatch"),
        (values(rank_pattern={"q_proj": 2}), "size mismatch"),
        (values(use_dora=True), "lora_magnitude_vector"),
        (values(modules_to_save=["lm_head"]), "lm_head.weight' is not in its file"),
        (values(target_modules=["nope"]), "not found in the base model"),
        (values(target_modules=["q_proj"]), "have no place"),
        (values(target_modules="(*"), "target_modules: '(*' is not a regular expression"),
        *(
            (values(**{key: given}), "takes more than 0.3 seconds to match")
            for key, given in (
                ("target_modules", ENDLESS),
                ("exclude_modules", ENDLESS),
                ("rank_pattern", {ENDLESS: 3}),
                ("alpha_pattern", {ENDLESS: 3}),
            )
        ),
        (values(peft_type="NOPE"), "PEFT cannot read its adapter_config.json"),
        (values(peft_type=None), "PEFT cannot read its adapter_config.json"),
        (text(CONFIG, '{"r":'), f"{CONFIG}: is damaged"),
        (text(CONFIG, "[]"), "no adapter can be used without it"),
        (text("base.json", "{"), "base.json: is damaged"),
        (text("base.json", '{"identity": 3}'), "base.json: is damaged"),
    ],
)
def test_an_adapter_that_is_not_what_it_was_is_refused(alone, monkeypatch, change, said):
    monkeypatch.setattr(module_patterns, "SECONDS", 0.3)
    change(alone)
    with pytest.raises(ConfigError) as refused:
        check_adapters(find_base(BASE), [find_adapter(str(alone))])
    assert said in str(refused.value)


def test_the_same_is_found_where_it_cannot_be_tried_on_an_empty_model(alone):
    """The initialisation of PiSSA reads weights, so that there is nothing to try before they are loaded."""
    tensors(without)(alone)
    values(init_lora_weights="pissa_niter_2")(alone)
    adapter = find_adapter(str(alone))
    check_adapters(find_base(BASE), [adapter])
    with pytest.raises(ConfigError, match="that the base needs are not there"):
        attach(tiny_base(), [adapter])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (values(init_lora_weights="pissa"), "was saved for the base that pissa had changed"),
        (values(layer_replication=[[0, 2]]), "repeats layers of the base"),
    ],
)
def test_an_adapter_of_another_base_is_not_trained_further(alone, change, said):
    change(alone)
    with pytest.raises(ConfigError, match=said):
        check_shape(one(*TINY, f"adapter={alone}"))


def test_keys_that_peft_does_not_know_are_said(alone):
    values(use_something_new=True)(alone)
    (note,) = check_adapters(find_base(BASE), [find_adapter(str(alone))])
    assert "use_something_new" in note


def test_an_adapter_that_changes_nothing_is_said(alone):
    tensors(lambda held: {name: value * ("lora_A" in name) for name, value in held.items()})(alone)
    (note,) = check_adapters(find_base(BASE), [find_adapter(str(alone))])
    assert "changes nothing" in note


def test_an_adapter_with_another_template_is_said(alone):
    (alone / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    (note,) = check_adapters(find_base(BASE), [find_adapter(str(alone))])
    assert f"template.chat_template={alone}/chat_template.jinja uses it" in note


def test_an_adapter_that_repeats_layers_is_said_and_refused_beside_others(alone, tmp_path):
    other = Path(shutil.copytree(alone, tmp_path / "other"))
    values(layer_replication=[[0, 2]])(alone)
    found = [find_adapter(str(folder)) for folder in (alone, other)]
    (note,) = check_adapters(find_base(BASE), found[:1])
    assert "what is scored as the base has them repeated too" in note
    with pytest.raises(ConfigError, match="under the other adapters too"):
        check_adapters(find_base(BASE), found)


DRAWN = ("model=tiny", "trainer.precision=fp32")


@pytest.mark.parametrize(
    "words",
    [
        ("recipe=evaluate", "data=orders"),
        ("recipe=chat", "prompt=hi"),
        ("recipe=merge",),
        ("recipe=sft", *TINY, "data=orders"),
        ("recipe=dpo", *TINY, "data=orders-pairs"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("change", [without, poisoned])
def test_no_recipe_uses_it(cli, alone, capsys, change, words):
    tensors(change)(alone)
    run = cli(*DRAWN, *words, "adapter=alone")
    assert run.code == 2
    assert FIRST in capsys.readouterr().err
    assert not run.folder.exists()


@pytest.mark.parametrize("change", [tensors(poisoned), values(lora_alpha=64)])
def test_an_adapter_that_its_run_has_not_written_is_refused(cli, parent, capsys, change):
    start = parent(*TINY, *QUIET)
    change(start.folder / "adapter")
    assert cli("recipe=chat", "prompt=hi", "adapter=start").code == 2
    assert "is not what its run has written" in capsys.readouterr().err


def test_the_name_of_its_base_may_be_another(cli, parent):
    start = parent(*TINY, *QUIET)
    values(base_model_name_or_path="me/my-tiny")(start.folder / "adapter")
    assert cli("recipe=chat", "prompt=hi", "adapter=start", "chat.max_new_tokens=2").code == 0


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("running", "its run is running (host "),
        ("killed", "its run was killed"),
        ("failed", "ended as failed"),
    ],
)
def test_an_adapter_of_a_run_that_has_not_completed_is_said(cli, parent, status, said):
    start = parent(*TINY, *QUIET)
    record = start.record | {"status": "failed" if status == "failed" else "running"}
    (start.folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    lock = hold(start.folder, "runs") if status == "running" else None
    run = cli("recipe=chat", "prompt=hi", "adapter=start", "chat.max_new_tokens=2")
    if lock:
        lock.release()
    assert run.code == 0
    assert any(said in note and "may not be its result" in note for note in run.record["notes"])


def test_an_adapter_on_the_head_is_used_and_not_trained_further(cli, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_base(), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    model.save_pretrained("theirs")
    rows = ("data=orders", "data.max_rows=4", "data.eval_max_rows=4")
    run = cli(*DRAWN, "recipe=evaluate", "adapter=theirs", "evaluate.metrics=[]", *rows)
    assert run.code == 0
    assert any("no record of the base" in note for note in run.record["notes"])
    assert cli(*TINY, *QUIET, "adapter=theirs", "data=orders", folder="more").code == 2
    assert "would not be trained" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["prompt", "ptuning"])
def test_an_adapter_of_the_prompt_is_evaluated(cli, parent, option):
    """The logits of its virtual tokens come in front of those of the row."""
    parent(*TINY, *QUIET, f"lora={option}")
    run = cli("recipe=evaluate", "adapter=start", "evaluate.metrics=[]")
    assert run.code == 0
    assert run.record["metrics"]["loss"] > 0


@pytest.mark.parametrize("values", [{"parents": 5}, {"digests": [1]}, {"status": ["x"]}])
def test_a_record_with_values_of_another_type_is_refused(trained, tmp_path, values):
    run = Path(shutil.copytree(trained(*TINY, *QUIET), tmp_path / "run"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(record | values), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=f"run.json: is damaged: {next(iter(values))} has a value of another"
    ):
        find_adapter(str(run))
