"""The architecture files describe the models they are named after, and every model option can use one."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from helpers.paths import ROOT

ARCHITECTURES = sorted((ROOT / "runner" / "models" / "architectures").glob("*.json"))
OPTIONS = sorted((ROOT / "conf" / "model").glob("*.yaml"))
OPTION_KEYS = {
    "path",
    "architecture",
    "weights",
    "revision",
    "trust_remote_code",
    "attn_implementation",
    "device_map",
    "dtype",
}

# Source: the published totals of the checkpoints on the Hugging Face hub, the sizes of all their tensors; a
# tied embedding counts once, also where a checkpoint stores it twice. `tiny` is this project's own.
PARAMETERS = {
    "chatglm3-6b": 6_243_584_000,
    "llama2-13b-chat": 13_015_864_320,
    "llama2-7b-chat": 6_738_415_616,
    "llama3.1-8b-instruct": 8_030_261_248,
    "qwen-14b-chat": 14_167_290_880,
    "qwen-7b-chat": 7_721_324_544,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "tiny": 106_816,
}


def test_every_architecture_has_a_known_size() -> None:
    assert {file.stem for file in ARCHITECTURES} == set(PARAMETERS)


@pytest.mark.parametrize("file", ARCHITECTURES, ids=lambda file: file.stem)
def test_parameter_count(file: Path) -> None:
    facts = {key: value for key, value in json.loads(file.read_text()).items() if not key.startswith("_")}
    config = CONFIG_MAPPING[facts.pop("model_type")](**facts)
    assert {key: getattr(config, key) for key in facts if key != "dtype"} == {
        key: value for key, value in facts.items() if key != "dtype"
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[file.stem]
    assert model.dtype == getattr(torch, facts["dtype"])


def test_every_architecture_has_an_option() -> None:
    assert {file.stem for file in OPTIONS} >= set(PARAMETERS)


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_model_option(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert f"# python -m runner model={file.stem}" in lines[:2]
    option = yaml.safe_load("\n".join(lines))
    if lines[0] == "# @package _global_":
        option = option["model"]
    assert set(option) <= OPTION_KEYS
    assert option["architecture"] in PARAMETERS
    assert option["path"] is not None or option["weights"] == "random"
