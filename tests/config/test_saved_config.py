"""A saved config composes to the run that it was saved of, whatever texts are in it."""

import dataclasses
import random
from pathlib import Path

from helpers.command import check, issues, one
from runner.cli.saved_config import to_yaml
from runner.config.settings import RunConfig


def save(run: RunConfig, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    for name in ("adapter", "model", "checkpoints"):  # as a run leaves them: they are no config groups
        (folder / name).mkdir(exist_ok=True)


SAVED = ("--config-path", "run", "--config-name", "config")


def test_a_saved_config_composes_to_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = one("quantization=nf4", "lora=r8", "template=alpaca", "trainer.max_steps=3", "seed=7")
    save(run, tmp_path / "run")
    assert one(*SAVED) == run
    assert one("--config-path=run/", "-cn", "config") == run
    assert one("--config-path", str(tmp_path / "run")) == run


def test_a_saved_config_takes_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(one("lora=dora", "trainer.max_steps=3"), tmp_path / "run")
    run = one(*SAVED, "trainer.max_steps=5", "trainer.adam_beta2=0.9", "lora.r=4", "adapter=run/adapter")
    assert (run.trainer["max_steps"], run.trainer["adam_beta2"], run.lora["r"]) == (5, 0.9, 4)
    assert run.lora["use_dora"] is True
    assert run.adapter == "run/adapter"
    # an option replaces the whole section: nothing of the saved one stays behind
    run = one(*SAVED, "lora=r8", "model=qwen3-4b")
    assert run.lora == one("lora=r8").lora
    assert run.model.path == "Qwen/Qwen3-4B"
    assert {run.lora["r"] for run in check(*SAVED, "-m", "lora=r8,r16")} == {8, 16}
    assert "num_train_epochs" not in one(*SAVED).trainer
    assert "unknown lora 'r9'" in issues(*SAVED, "lora=r9")[0]
    assert "'lora.r'" in issues(*SAVED, "lora.rr=1")[0]


def test_a_mistake_in_a_saved_config_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(one(), tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("lora_alpha:", "lora_alpa:"))
    line = file.read_text().splitlines().index("  lora_alpa: 32") + 1
    assert issues(*SAVED)[0].startswith(f"run/config.yaml:{line}: unknown key 'lora.lora_alpa'")


def test_a_relative_path_of_a_saved_config_says_to_what(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    save(one("data=file", "data.path=rows.jsonl"), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = issues("--config-path", "../run", "--config-name", "config")
    assert f"relative to {tmp_path / 'elsewhere'}, where this command was started" in found[0]
    assert "relative to" not in issues("data=file", "data.path=rows.jsonl")[0]


AWKWARD = [
    *["no", "yes", "null", "~", "1e-4", "0x1F", "1_000", "12:30", "2020-01-01", "", " ", "#", "- a", "a: b"],
    *[
        "{{ x }}",
        "{% if a %}\n  {{ b }}\n{% endif %}",
        "tab\there",
        "  lead and trail  ",
        "end\n\n",
        "你好 \u2028",
    ],
    *["${foo}", "a ${foo.bar} b", r"\${foo}", r"\\${foo} \\", "${", "$ {a}", r"C:\dir\ ", "'\"", "${a}\\"],
]


def random_texts():
    source = random.Random(0)
    return ["".join(source.choices(["\\", "$", "{", "}", "${", "a", "'", '"', " "], k=8)) for _ in range(60)]


def test_any_text_survives_being_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = one()
    values = {str(number): text for number, text in enumerate([*AWKWARD, *random_texts()])}
    kwargs = {**values, "list": [1e-05, None, True, 3, "off", {"a": "${b}"}], "on": 1, "empty": {}}
    run = dataclasses.replace(run, template=dataclasses.replace(run.template, kwargs=kwargs))
    save(run, tmp_path / "run")
    assert one(*SAVED).template.kwargs == kwargs
    assert one(*SAVED) == run
