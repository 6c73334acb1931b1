"""Someone else's config that stands for more than can be meant is refused in seconds, by its line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from recipes import OBJECTIVES
from runner.cli import run_config
from runner.cli.saved_config import to_yaml
from runner.core.errors import ConfigError
from runner.core.yaml_reader import check_yaml, parse_yaml

SECONDS = 10.0  # on a machine that does other things too; without the bounds each takes minutes, or memory


def issues(*words: str) -> list[str]:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        run_config.check(run_config.parse(list(words), OBJECTIVES))
    assert time.monotonic() - began < SECONDS
    return [str(issue) for issue in caught.value.issues]


def written(folder: Path, name: str, text: str | bytes) -> list[str]:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["model=tiny", "--config-dir", str(folder), name.replace("/", "=")]


def doubled(first: str, form: str, count: int = 28) -> str:
    """A mapping of which each value names the one before it twice."""
    lines = [f"    x0: {first}"]
    lines += [f"    x{n}: {form.replace('@', f'template.kwargs.x{n - 1}')}" for n in range(1, count)]
    return "# @package _global_\ntemplate:\n  kwargs:\n" + "\n".join(lines) + "\n"


ALIASES = "_target_: peft.LoraConfig\nx0: &x0 [a,a,a,a,a,a,a,a,a,a]\n" + "".join(
    f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MERGES = "_target_: peft.LoraConfig\nx0: &x0 {r: 4}\n" + "".join(
    f"x{n}: &x{n} {{<<: [{','.join([f'*x{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("name", "text", "line", "said"),
    [
        ("lora/theirs", ALIASES, 6, "more than 20,000 values, with all aliases"),
        ("lora/theirs", MERGES, 6, "more than 20,000 values, with all aliases"),
        ("lora/theirs", f"_target_: peft.LoraConfig\nr: {'[' * 5000}{']' * 5000}\n", 2, "50 levels"),
        ("lora/theirs", f"_target_: peft.LoraConfig\nr: {'{a: ' * 80}1{'}' * 80}\n", 2, "50 levels"),
        ("lora/theirs", "_target_: peft.LoraConfig\nr: &a [*a]\n", 2, "stands inside of what it names"),
        ("lora/theirs", f"_target_: peft.LoraConfig\nr: {'9' * 5000}\n", 2, "a number of 5,000 digits"),
        ("lora/theirs", "_target_: peft.LoraConfig\nr: 010\n", 2, "octal"),
        ("lora/theirs", "_target_: peft.LoraConfig\nr: 1:30\n", 2, "base 60"),
        ("lora/theirs", "_target_: peft.LoraConfig\nr: 2026-99-99\n", 2, "expected int, got str"),
        ("lora/theirs", "_target_: peft.LoraConfig\nr: !!python/name:os.system x\n", 2, "constructor"),
        ("lora/theirs", "# @package a b\nr: 1\n", 1, "Too many components"),
        ("lora/theirs", b"_target_: peft.LoraConfig\nr: \x00\n", None, "not allowed"),
        ("lora/theirs", "- r\n", 1, "not a mapping"),
        ("lora/theirs", f"r: {'x' * 2**20}\n", 1, "more than 1,048,576 bytes"),
        ("experiment/theirs", doubled("a" * 16, "${@}${@}"), None, "interpolations"),
        ("experiment/theirs", doubled("999999999999", "${mul:${@},${@}}"), None, "interpolations"),
        ("experiment/theirs", doubled("[a]", "[\"${@}\", \"${@}\"]"), None, "takes more than"),
        ("experiment/theirs", doubled("{a: b}", "{a: \"${@}\", b: \"${@}\"}"), None, "takes more than"),
        ("experiment/theirs", doubled("b" * 20_000, "${@}" * 100, 4), None, "make more than"),
        ("experiment/theirs", doubled("a", "${" * 5000), 5, "more than 2,000 interpolations"),
        ("experiment/theirs", doubled("a", "${a" + ".a" * 12_000), 5, "more than 20,000 characters"),
        ("experiment/theirs", "# @package _global_\ntemplate: {kwargs: \"${template}\"}\n", 2, "template"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_file_that_stands_for_too_much_is_refused(tmp_path, name, text, line, said):
    found = issues(*written(tmp_path, name, text))
    assert said in found[0]
    place = f"{tmp_path}/{name}.yaml" + (f":{line}: " if line else "")
    assert found[0].startswith(place), found[0]
    assert len(found) < 40


@pytest.mark.slow
def test_a_saved_config_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (config,) = run_config.check(run_config.parse(["model=tiny"], OBJECTIVES)).configs
    (tmp_path / "run").mkdir()
    text = to_yaml(config)
    file = tmp_path / "run" / "config.yaml"
    words = ["--config-path", "run", "--config-name", "config"]
    file.write_text(text.replace("kwargs: {}", "kwargs: &a\n    x: *a"))
    assert "run/config.yaml:" in issues(*words)[0]
    more = "kwargs:\n" + doubled("a", "${@}${@}").split("kwargs:\n")[1]
    file.write_text(text.replace("kwargs: {}\n", more))
    assert "interpolations" in issues(*words)[0]


def test_a_byte_order_mark_is_read(tmp_path):
    text = b"\xef\xbb\xbf# @package _global_\r\ntrainer:\r\n  learning_rate: 0.01\r\n"
    words = written(tmp_path, "experiment/bom", text)
    (config,) = run_config.check(run_config.parse(words, OBJECTIVES)).configs
    assert config.trainer["learning_rate"] == 0.01


def test_a_pipe_is_not_waited_for(tmp_path):
    words = written(tmp_path, "lora/theirs", "r: 1\n")
    (tmp_path / "lora" / "theirs.yaml").unlink()
    os.mkfifo(tmp_path / "lora" / "theirs.yaml")
    assert "theirs" in issues(*words)[0]


@pytest.mark.parametrize(
    "text",
    ["a: 0", "a: 08", "a: '010'", "a: 0x1f", "a: 1e-4", "a: 12-30", "a: 1_000", "a: 0.5", "a: &b [1]\nc: *b"],
)
def test_what_yaml_reads_as_it_looks_is_kept(text):
    check_yaml(text)
    assert parse_yaml(text) == yaml.safe_load(text)
