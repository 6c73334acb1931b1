"""The architecture files describe the models they are named after, and every model option can use one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from helpers.paths import ROOT
from runner.config.settings import ModelSettings
from runner.models.architectures.page import page, presets, row
from runner.plan import find

ARCHITECTURES = sorted((ROOT / "runner" / "models" / "architectures").glob("*.json"))
OPTIONS = sorted((ROOT / "conf" / "model").glob("*.yaml"))
# What a config takes for some of its layers, and has no value of for all.
OF_LAYERS = {"global_head_dim", "num_global_key_value_heads", "head_dim", "num_key_value_heads"}
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
    "deepseek-r1-distill-llama-70b": 70_553_706_496,
    "deepseek-r1-distill-llama-8b": 8_030_261_248,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-r1-distill-qwen-14b": 14_770_033_664,
    "deepseek-r1-distill-qwen-32b": 32_763_876_352,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "gemma3-12b-it": 12_187_325_040,
    "gemma3-1b-it": 999_885_952,
    "gemma3-270m-it": 268_098_176,
    "gemma3-27b-it": 27_432_406_640,
    "gemma3-4b-it": 4_300_079_472,
    "granite4-h-micro": 3_191_396_096,
    "lfm2-1.2b": 1_170_340_608,
    "lfm2-2.6b": 2_569_272_320,
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 742_489_344,
    "lfm2-8b-a1b": 8_339_929_856,
    "llama2-13b-chat": 13_015_864_320,
    "llama2-7b-chat": 6_738_415_616,
    "llama3.1-8b-instruct": 8_030_261_248,
    "llama3.2-1b-instruct": 1_235_814_400,
    "llama3.2-3b-instruct": 3_212_749_824,
    "mistral-small-24b-instruct": 23_572_403_200,
    "olmo3-7b-instruct": 7_298_011_136,
    "olmo3.1-32b-instruct": 32_233_522_176,
    "phi-4": 14_659_507_200,
    "phi-4-mini-instruct": 3_836_021_760,
    "qwen-14b-chat": 14_167_290_880,
    "qwen-7b-chat": 7_721_324_544,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "smollm3-3b": 3_075_098_624,
    "tiny": 106_816,
}

# In billions, where only rounded sizes are known: those of model cards; for Qwen3.5 and 3.6, whose names
# count a vision tower and a layer that drafts tokens, those that llama.cpp gives for the text path. The cards
# of the two large models of Gemma 4 leave out their vision tower of 550 million.
BILLIONS = {
    "gemma4-26b-a4b-it": 25.2 + 0.55,
    "gemma4-31b-it": 30.7 + 0.55,
    "gemma4-e2b-it": 5.1,
    "gemma4-e4b-it": 8.0,
    "glm-4.7-flash": 29.9,
    "gpt-oss-20b": 20.9,
    "granite4-1b": 1.6,
    "granite4-350m": 0.35,
    "granite4-h-1b": 1.5,
    "granite4-h-350m": 0.34,
    "granite4-h-small": 32.0,
    "granite4-h-tiny": 7.0,
    "granite4-micro": 3.4,
    "qwen3.5-0.8b": 0.75,
    "qwen3.5-27b": 26.9,
    "qwen3.5-2b": 1.88,
    "qwen3.5-35b-a3b": 34.66,
    "qwen3.5-4b": 4.21,
    "qwen3.5-9b": 8.95,
    "qwen3.6-27b": 26.9,
    "qwen3.6-35b-a3b": 34.66,
}


def test_every_architecture_has_a_known_size() -> None:
    assert {file.stem for file in ARCHITECTURES} == {*PARAMETERS, *BILLIONS}
    assert not PARAMETERS.keys() & BILLIONS.keys()


def departures(config: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """What a config says otherwise than ``facts``, but of what it hands to its layers."""
    found = {}
    for key, value in facts.items():
        if key == "dtype" or (key in OF_LAYERS and config.model_type == "gemma4_text"):
            continue
        said = getattr(config, key)
        if isinstance(said, PreTrainedConfig):
            found |= departures(said, value)
        elif said != value:
            found[key] = said
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("file", ARCHITECTURES, ids=lambda file: file.stem)
def test_parameter_count(file: Path) -> None:
    facts = {key: value for key, value in json.loads(file.read_text()).items() if not key.startswith("_")}
    given = copy.deepcopy(facts)
    config = CONFIG_MAPPING[given.pop("model_type")](**given)
    assert departures(config, facts) == {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    if file.stem in PARAMETERS:
        assert found == PARAMETERS[file.stem]
    assert found == pytest.approx(PARAMETERS.get(file.stem) or BILLIONS[file.stem] * 1e9, rel=0.03)
    assert model.dtype == getattr(torch, facts["dtype"])


def test_every_architecture_has_an_option() -> None:
    assert {file.stem for file in OPTIONS} >= {file.stem for file in ARCHITECTURES}


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_model_option(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert f"# python -m runner model={file.stem}" in lines[:2]
    option = yaml.safe_load("\n".join(lines))
    if lines[0] == "# @package _global_":
        option = option["model"]
    assert set(option) <= OPTION_KEYS
    assert option["architecture"] == file.stem  # or its shape would be fetched
    assert option["path"] is not None or option["weights"] == "random"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_its_plan_needs_no_network(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(find, "config_file", lambda *_: pytest.fail("the shape is fetched"))
    settings = ModelSettings(**yaml.safe_load(file.read_text()))
    known = PARAMETERS.get(file.stem) or BILLIONS[file.stem] * 1e9
    assert find.find_architecture(settings).parameters == pytest.approx(known, rel=0.03)


def test_every_published_model_has_a_license() -> None:
    found = {preset.name: preset for preset in presets()}
    assert found.keys() == {file.stem for file in OPTIONS} - {"tiny"}
    assert [name for name, preset in found.items() if not preset.license] == []
    gated = {name for name, preset in found.items() if preset.gated}
    owners = {str(found[name].settings.path).partition("/")[0] for name in gated}
    assert owners == {"google", "meta-llama", "mistralai"}
    of_owners = {
        name for name, preset in found.items() if str(preset.settings.path).startswith("meta-llama/")
    }
    assert gated >= of_owners


@pytest.mark.parametrize("name", ["gemma3-270m-it", "lfm2-350m", "qwen3-0.6b"])
def test_a_row_of_the_page_says_what_a_run_adapts(name: str) -> None:
    preset = next(preset for preset in presets() if preset.name == name)
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert row(preset) in text, "python -m runner.models.architectures.page > docs/models.md"


def test_the_page_names_every_model() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    named = [
        line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "model=" not in line
    ]
    assert named == [preset.name for preset in presets()]


@pytest.mark.slow
def test_the_page_in_docs_is_made_of_the_options() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert text == page(), "python -m runner.models.architectures.page > docs/models.md"
