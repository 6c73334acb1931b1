"""Every option of every group composes to a config without mistakes, and says how it is used."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from helpers.paths import CONF
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import RunConfig

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [file for file in FILES if file.parent != CONF and file.parent.name != "experiment"]
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))


def name(file: Path) -> str:
    return f"{file.parent.relative_to(CONF).as_posix()}={file.stem}"


def choices(file: Path) -> list[str]:
    """What chooses a file: ``trainer_model/sft-tiny`` is there for ``trainer=sft`` with ``model=tiny``."""
    if "_" not in file.parent.name:
        return [name(file)]
    options = file.stem.split("-", 1)
    return [f"{group}={option}" for group, option in zip(file.parent.name.split("_"), options, strict=True)]


def given(*files: Path) -> list[str]:
    """Values for the keys that files leave open with ``???``."""
    words = []
    for file in files:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        whole = "# @package _global_" in file.read_text(encoding="utf-8")
        for default in values.pop("defaults", []):
            named = default if isinstance(default, dict) else {file.parent.name: default}
            for group, option in named.items():
                words += given(CONF / group.removeprefix("override ").strip("/") / f"{option}.yaml")
        for section, inner in (values if whole else {file.parent.name: values}).items():
            keys = inner if isinstance(inner, dict) else {}
            words += [
                f"{section}.{key}=embedded:orders_eval" for key, value in keys.items() if value == "???"
            ]
            words += [f"{section}=." for value in [inner] if value == "???"]
    return words


def compose(*words: str) -> RunConfig:
    return run_config.check(run_config.parse(list(words), OBJECTIVES)).configs[0]  # of a sweep the first cell


@pytest.mark.parametrize("file", [*OPTIONS, *EXPERIMENTS], ids=name)
@pytest.mark.slow
def test_the_command_in_the_header_works(file, tmp_path, monkeypatch):
    """With files of those names at hand."""
    monkeypatch.chdir(tmp_path)
    lines = file.read_text(encoding="utf-8").splitlines()
    header = lines[lines[0].startswith("# @package")]
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "adapter_config.json").write_text('{"base_model_name_or_path": "."}')
    for data in re.findall(r"[\w.-]+\.(?:jsonl?|csv)", header):
        Path(data).write_text("{}")
    words = shlex.split(header.removeprefix("# python -m runner"))
    assert all(choice in words for choice in choices(file))
    assert isinstance(compose(*words), RunConfig)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("over", [[], ["model=smollm2-135m"], ["model.weights=random"]], ids=" ".join)
@pytest.mark.parametrize("file", EXPERIMENTS, ids=name)
def test_experiment(file, over, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    run = compose(name(file), *over, *given(file))
    if over == ["model=smollm2-135m"]:
        assert run.model.architecture == "smollm2-135m"
    elif over:
        assert run.model.weights == "random"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_the_first_comment_is_the_command_that_uses_it(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert comment.startswith("# python -m runner")
    if file.parent != CONF:
        assert all(f" {choice}" in f"{comment} " for choice in choices(file))


def test_every_experiment_places_its_keys_in_the_whole_config():
    assert [
        file.name for file in EXPERIMENTS if not file.read_text().startswith("# @package _global_\n")
    ] == []
