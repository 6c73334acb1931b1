"""What is wrong in the values that come with an adapter is said with the file and line they stand in."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY


@pytest.fixture
def saved(parent: Any) -> Any:
    """The PEFT config of a run of this folder, to be changed."""
    file = parent(*TINY).folder / "adapter/adapter_config.json"

    def change(indent: Any = 2, **values: Any) -> Path:
        file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=indent))
        return file

    return change


def line(file: Path, key: str) -> int:
    return next(number for number, text in enumerate(file.read_text().splitlines(), 1) if f'"{key}"' in text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("r", 0), ("r", -3), ("r", "many"), ("lora_alpha", 0), ("lora_alpha", -1.0), ("lora_dropout", 1.5)],
)
@pytest.mark.parametrize("recipe", ["sft", "dpo", "evaluate", "chat"])
@pytest.mark.slow
def test_a_shape_out_of_range_names_the_adapters_file(cli, saved, capsys, recipe, key, value) -> None:
    file = saved(**{key: value})
    assert cli(f"recipe={recipe}", "adapter=start").code == 2
    said = capsys.readouterr().err
    assert f"start/adapter/adapter_config.json:{line(file, key)}: lora.{key}" in said
    assert "allowed: " in said


def test_an_adapter_folder_alone_names_its_file_too(cli, saved, capsys) -> None:
    file = saved(r=0, target_modules="(q_proj|")
    lines = line(file, "r"), line(file, "target_modules")
    (file.parents[1] / "adapter").rename("alone")
    assert cli("recipe=sft", "adapter=alone", "data.path=embedded:orders_train").code == 2
    said = capsys.readouterr().err
    assert f"alone/adapter_config.json:{lines[0]}: lora.r=0 is" in said
    assert f"alone/adapter_config.json:{lines[1]}: lora.target_modules: '(q_proj|' is not a regular" in said
    assert "names of modules, [q_proj, v_proj], need none" in said


def test_json_that_is_no_yaml_is_named_without_a_line(cli, saved, capsys) -> None:
    saved("\t", r=0)
    assert cli("recipe=sft", "adapter=start").code == 2
    assert "start/adapter/adapter_config.json: lora.r=0 is" in capsys.readouterr().err


def test_what_is_typed_is_named_as_typed(cli, saved, capsys) -> None:
    saved(r=0)
    assert cli("recipe=sft", "adapter=start", "lora.r=-1").code == 2
    said = capsys.readouterr().err
    assert "  lora.r=-1: lora.r=-1 is" in said
    assert "adapter_config.json" not in said


def test_the_runs_own_config_is_named(cli, saved, capsys) -> None:
    """Its other sections are not what this command takes over."""
    file = saved().parents[1] / "config.yaml"
    text = file.read_text().replace("target_modules: all-linear", "target_modules: '(q_proj|'")
    file.write_text(text.replace("max_grad_norm: ", "max_grad_norm: -"))
    number = next(n for n, each in enumerate(file.read_text().splitlines(), 1) if "target_modules" in each)
    assert cli("recipe=sft", "adapter=start").code == 2
    said = capsys.readouterr().err
    assert f"start/config.yaml:{number}: lora.target_modules: " in said
    assert "max_grad_norm" not in said


def test_a_pattern_that_is_none_comes_with_a_hint(cli, saved, capsys) -> None:
    file = saved(target_modules="(q_proj|")
    file.parent.rename("alone")
    assert cli("recipe=chat", "adapter=alone", "lora=r16", "trainer.precision=fp32", "prompt=hi").code == 2
    said = capsys.readouterr().err
    assert "target_modules: '(q_proj|' is not a regular expression" in said
    assert "names of modules, [q_proj, v_proj], need none" in said
