"""Row 34: a config from someone else runs no code, wherever in it the code is named.

Every attack would leave a marker file; that there is none is asserted after each test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.command import TINY, Run
from runner.config import trust
from runner.core.errors import ExitCode

MARKER = "marker"
# A config of one's own, as --config-path takes it; the keys of the attack come last.
BASE = {
    "defaults": [
        "runner",
        {"trainer": "sft"},
        {"model": "tiny"},
        {"quantization": "none"},
        {"lora": "r16"},
        {"data": "orders"},
        {"template": "chat"},
        {"recipe": "sft"},
        "_self_",
    ],
    **dict.fromkeys(["output_dir", "adapter", "resume", "export", "push_to", "prompt", "prompts", "stages"]),
    "seed": 0,
}
CALL = {"_target_": "os.system", "command": f"touch {MARKER}"}
LOGGING = {"version": 1, "formatters": {"x": {"()": "os.system", "command": f"touch {MARKER}"}}}
HANDLER = {"version": 1, "handlers": {"x": {"class": "logging.FileHandler", "filename": MARKER}}}


@pytest.fixture(autouse=True)
def _no_marker(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob(MARKER))


def config(folder: Path, **attack: object) -> list[str]:
    """Write a whole config with an attack into a folder; the words that use it."""
    folder.mkdir()
    text = yaml.safe_dump({**BASE, **attack}, sort_keys=False)
    (folder / "theirs.yaml").write_text(text, encoding="utf-8")
    return ["--config-path", str(folder), "--config-name", "theirs"]


def experiment(folder: Path, **attack: object) -> list[str]:
    """Write an experiment with an attack into a folder of options; the words that use it."""
    (folder / "experiment").mkdir(parents=True)
    text = "# @package _global_\n" + yaml.safe_dump(attack)
    (folder / "experiment" / "theirs.yaml").write_text(text, encoding="utf-8")
    return ["--config-dir", str(folder), "experiment=theirs"]


def refusal(run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused run said; it must have left nothing."""
    said = capsys.readouterr().err
    assert run.code == ExitCode.CONFIG_ERROR, said
    assert not run.folder.exists()
    return said


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("lora._target_=peft.tuners.lora.LoraConfig", "did you mean 'peft.LoraConfig'?"),
        (
            "quantization._target_=transformers.utils.quantization_config.BitsAndBytesConfig",
            "'transformers.BitsAndBytesConfig'",
        ),
        ("trainer._target_=trl.trainer.sft_config.SFTConfig", "allowed: trl.SFTConfig"),
        ("lora._target_=os.system", "'os.system' is not a peft class allowed here"),
        ("lora._target_=builtins.eval", "'builtins.eval' is not a peft class"),
        ("quantization._target_=subprocess.run", "'subprocess.run' is not a transformers or runner class"),
        ("lora._target_=trl.SFTConfig", "'trl.SFTConfig' is not a peft class"),
        ("+lora.alpha_pattern={a: {_target_: os.system}}", "lora.alpha_pattern.a._target_: no class may be"),
        (
            "+data.columns={a: [{_target_: os.system}]}",
            "data.columns.a.0._target_: no class may be named here",
        ),
        ("+model._target_=os.system", "model._target_: no class may be named here"),
        ("+hydra.callbacks.x._target_=os.system", "hydra.callbacks"),
        ("hydra.launcher._target_=os.system", "hydra.launcher._target_: 'os.system' is not allowed"),
        ("hydra.sweeper._target_=os.system", "hydra.sweeper._target_: 'os.system' is not allowed"),
        ("+hydra.job.env_set.HF_ENDPOINT=elsewhere", "hydra.job.env_set"),
    ],
)
def test_override_names_no_class(cli, capsys, word: str, named: str) -> None:
    said = refusal(cli(*TINY, word), capsys)
    assert named in said


@pytest.mark.sampled(5)
@pytest.mark.parametrize("place", [config, experiment])
@pytest.mark.parametrize(
    ("attack", "named"),
    [
        ({"lora": CALL}, "'os.system' is not a peft class"),
        ({"data": {"columns": {"deep": [CALL]}}}, "data.columns.deep.0._target_"),
        ({"hydra": {"callbacks": {"x": CALL}}}, "hydra.callbacks"),
        ({"hydra": {"launcher": CALL}}, "hydra.launcher"),
        ({"hydra": {"job_logging": LOGGING}}, "hydra.job_logging"),
        ({"hydra": {"hydra_logging": HANDLER}}, "hydra.hydra_logging"),
        ({"hydra": {"job": {"env_set": {"LD_PRELOAD": "x.so"}}}}, "hydra.job.env_set"),
        ({"model": {"trust_remote_code": True}}, "model.trust_remote_code=true"),
        ({"evaluate": {"function": "theirs.py:score"}}, "evaluate.function=theirs.py:score"),
        ({"gguf": {"llama_cpp": "theirs"}}, "gguf.llama_cpp=theirs"),
        ({"model": {"attn_implementation": "them/kernel"}}, "model.attn_implementation=them/kernel"),
        (
            {
                "lora": {
                    "_target_": "peft.PromptTuningConfig",
                    "tokenizer_kwargs": {"trust_remote_code": True},
                }
            },
            "lora.tokenizer_kwargs.trust_remote_code",
        ),
    ],
)
def test_file_runs_no_code(cli, capsys, tmp_path: Path, place, attack: dict, named: str) -> None:
    said = refusal(cli(*TINY[1:], "model=tiny", *place(tmp_path / "theirs", **attack)), capsys)
    assert named in said
    assert "theirs" in said or "hydra." in said  # the file with its line, or Hydra's own key


@pytest.mark.sampled(4)
@pytest.mark.parametrize("flag", ["--help", "--hydra-help", "--info=all", "--cfg=job", "-m"])
@pytest.mark.parametrize("key", ["job_logging", "hydra_logging"])
def test_no_flag_sets_up_a_logging_of_theirs(cli, capsys, tmp_path: Path, flag: str, key: str) -> None:
    words = config(tmp_path / "theirs", hydra={key: LOGGING})
    assert f"hydra.{key}" in refusal(cli(*words, *(["-m", "lora.r=4,8"] if flag == "-m" else [flag])), capsys)


def test_saved_config_is_checked_like_any_other(cli, capsys, tmp_path: Path) -> None:
    run = cli(*TINY, "trainer.max_steps=1")
    kept = (file := run.folder / "config.yaml").read_text(encoding="utf-8")
    for old, new, named in (
        ("_target_: peft.LoraConfig", "_target_: os.system", "config.yaml:"),
        ("trust_remote_code: false", "trust_remote_code: true", "model.trust_remote_code=true"),
        ("function: null", "function: theirs.py:f", "evaluate.function=theirs.py:f"),
    ):
        assert old in kept
        file.write_text(kept.replace(old, new), encoding="utf-8")
        again = cli("--config-path", str(run.folder), "--config-name", "config", folder="again")
        assert named in refusal(again, capsys)


def test_code_that_the_user_asks_for_is_allowed(cli, capsys, tmp_path: Path) -> None:
    """Said on the command line together with the path: no complaint about trust."""
    (tmp_path / "mine").mkdir()
    said = refusal(cli(*TINY, "model.path=mine", "model.trust_remote_code=true", "seed=-1"), capsys)
    assert "1 config error" in said
    words = [
        *TINY,
        "model.trust_remote_code=true",
        *experiment(tmp_path / "theirs", model={"path": "them/it"}),
    ]
    assert "model.path=them/it runs code" in refusal(cli(*words), capsys)


def test_packaged_model_that_brings_code_counts_as_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trust, "CONFIG_DIR", tmp_path)
    (tmp_path / "model").mkdir()
    for name, runs in (("plain", False), ("coded", True)):
        (tmp_path / "model" / f"{name}.yaml").write_text(f"path: a/b\ntrust_remote_code: {runs}\n")
        assert trust.runs_code(f"model={name}") is runs


@pytest.mark.parametrize(
    "word",
    [
        "evaluate.function=theirs.py:f",
        "evaluate={function: theirs.py:f}",
        "model.trust_remote_code=true",
        "--config-path=theirs",
        "stages={a: [evaluate.function=theirs.py:f]}",
    ],
)
def test_stages_of_theirs_are_not_the_command_line(cli, capsys, tmp_path: Path, word: str) -> None:
    words = config(tmp_path / "theirs", recipe="chain", stages={"one": ["recipe=evaluate", word]})
    assert f"stages.one: {word} runs code from elsewhere" in refusal(cli(*words), capsys)


@pytest.mark.parametrize(
    "hydra",
    [
        {"overrides": {"task": ["evaluate.function=theirs.py:f"]}},
        {"job": {"config_name": "config"}},
        {"searchpath": ["pkg://theirs"]},
    ],
)
def test_file_cannot_pose_as_the_command_line(cli, capsys, tmp_path: Path, hydra: dict) -> None:
    function = {"function": "theirs.py:f"}
    said = refusal(cli(*config(tmp_path / "theirs", hydra=hydra, evaluate=function)), capsys)
    assert "hydra." in said or "evaluate.function=theirs.py:f runs code" in said


def test_environment_is_not_read_by_a_config(cli, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "its-value")
    inside = "${oc.decode:${oc.env:SOME_VARIABLE}}"
    for words in (
        ["template.system=${oc.env:SOME_VARIABLE}"],
        ["template.system=${oc.env:SOME_VARIABLE,default}"],
        config(tmp_path / "nested", template={"system": inside}),
        [*config(tmp_path / "named", hydra={"sweep": {"dir": inside}}), "-m", "lora.r=4,8"],
        config(tmp_path / "chosen", defaults=[*BASE["defaults"], {"data@x": "${oc.env:SOME_VARIABLE}"}]),
    ):
        said = refusal(cli(*TINY[1:], *words), capsys)
        assert "oc.env:SOME_VARIABLE" in said
        assert "its-value" not in said


TEMPLATE = "optuna.samplers._cmaes.optuna.storages._rdb.storage.alembic.util.pyfiles.Template"
MAKO = {"_target_": TEMPLATE, "text": f'<%! import os; os.system("touch {MARKER}") %>'}
SAMPLER = {"_target_": "optuna.samplers.TPESampler"}
OPTUNA = {"defaults": [{"override /hydra/sweeper": "optuna"}]}


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("sweeper", "named"),
    [
        ({"storage": MAKO}, "hydra.sweeper.storage"),
        ({"storage": {"a": [MAKO]}}, "hydra.sweeper.storage"),
        ({"sampler": MAKO}, "hydra.sweeper.sampler._target_"),
        ({"sampler": {"_target_": "optuna.samplers._base.BaseSampler"}}, "hydra.sweeper.sampler._target_"),
        ({"sampler": {"_target_": "optuna.samplers.intersection_search_space"}}, "allowed: optuna.samplers."),
        ({"sampler": {**SAMPLER, "gamma": MAKO}}, "hydra.sweeper.sampler.gamma"),
        ({"sampler": {**SAMPLER, "_args_": [MAKO]}}, "hydra.sweeper.sampler._args_"),
        ({"sampler": {**SAMPLER, "seed": MAKO}}, "hydra.sweeper.sampler.seed"),
        ({"sampler": "${trainer}"}, "hydra.sweeper.sampler"),
        ({"sampler": "${oc.select:hydra.help,${oc.create:{_target_:os.system}}}"}, "hydra.sweeper.sampler"),
        ({"study_name": MAKO}, "hydra.sweeper.study_name"),
        ({"params": {"lora.r": MAKO}}, "hydra.sweeper.params"),
        ({"direction": [MAKO]}, "hydra.sweeper.direction"),
        ({"direction": "${now:%f}"}, "hydra.sweeper.direction"),
        ({"_args_": [MAKO]}, "hydra.sweeper._args_"),
        ({"more": MAKO}, "hydra.sweeper.more"),
        ({"storage": "redis://theirs/1"}, "counts on the command line only"),
        ({"storage": "postgresql://theirs/x"}, "counts on the command line only"),
        ({"custom_search_space": "os.system"}, "no function may be named here"),
        ({"search_space": {"evaluate.function": {"type": "categorical"}}}, "counts on the command line only"),
        ({"_target_": "hydra_plugins.hydra_optuna_sweeper.config.os.system"}, "hydra.sweeper._target_"),
        ({"params": {"evaluate.function": "theirs.py:f,theirs.py:g"}}, "runs code from elsewhere"),
        ({"params": {"model.trust_remote_code": "true", "lora.r": "4,8"}}, "runs code from elsewhere"),
        ({"params": {"hydra.job.env_set.LD_PRELOAD": "x.so,y.so"}}, "runs code from elsewhere"),
    ],
)
@pytest.mark.parametrize("place", ["option", "experiment"])
def test_sweeper_of_theirs_runs_no_code(
    cli, capsys, tmp_path: Path, sweeper: dict, named: str, place: str
) -> None:
    """An experiment changes the plugin's section, which takes its own keys only; an option replaces it."""
    config_module = pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.config")
    if place == "experiment" and not {"storage", "params"} & set(sweeper):
        return  # Hydra's own types refuse most others there
    folder = tmp_path / "theirs"
    if place == "experiment":
        hydra = {"mode": "MULTIRUN", "sweeper": {"params": {"lora.r": "choice(2,4)"}, **sweeper}}
        words = experiment(folder, **OPTUNA, hydra=hydra)
    else:
        own = dataclasses.asdict(config_module.OptunaSweeperConf())
        own |= {"sampler": SAMPLER, "direction": "minimize", "params": {"lora.r": "choice(2,4)"}}
        own = {key: value for key, value in own.items() if key != "defaults"} | sweeper
        (folder / "hydra" / "sweeper").mkdir(parents=True)
        (folder / "hydra" / "sweeper" / "theirs.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        words = ["--config-dir", str(folder), "hydra/sweeper=theirs", "-m"]
    said = refusal(cli(*words), capsys)
    assert named in said or (place == "experiment" and "raised while composing config" in said)


@pytest.mark.parametrize(
    ("hydra", "named"),
    [
        ({"callbacks": "${oc.create:{x: {_target_: os.system}}}"}, "hydra.callbacks"),
        ({"job": {"env_set": "${oc.create:{LD_PRELOAD: x.so}}"}}, "hydra.job.env_set"),
        ({"job_logging": "${template.kwargs}"}, "hydra.job_logging"),
        ({"launcher": "${template.kwargs}"}, "hydra.launcher"),
        ({"launcher": {"more": 1}}, "hydra.launcher"),
    ],
)
def test_no_interpolation_stands_for_a_class(cli, capsys, tmp_path: Path, hydra: object, named: str) -> None:
    """It could be another value when Hydra reads it: ``${now:...}`` is."""
    assert named in refusal(cli(*config(tmp_path / "theirs", hydra=hydra), "model=tiny"), capsys)


def test_launcher_of_theirs_is_a_plugin_that_is_installed(cli, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "theirs" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    ours = "hydra_plugins.packed_launcher"
    for target in ("os.system", f"{ours}.os.system", f"{ours}.Path"):
        (folder / "evil.yaml").write_text(f"_target_: {target}\ncommand: touch {MARKER}\n", encoding="utf-8")
        words = ["--config-dir", str(tmp_path / "theirs"), "hydra/launcher=evil", "-m", "lora.r=2,4"]
        assert "hydra.launcher._target_" in refusal(cli(*TINY, *words), capsys)


@pytest.mark.parametrize("key", ["megatron_core", "auto_mapping", "megatron_config"])
def test_adapter_config_names_no_module_to_import(cli, capsys, tmp_path: Path, key: str) -> None:
    words = experiment(tmp_path / "theirs", lora={key: {"parent_library": "antigravity"}})
    assert f"lora.{key} is decided elsewhere" in refusal(cli(*TINY, *words), capsys)
