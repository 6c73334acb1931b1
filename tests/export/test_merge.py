"""Merging through the real command line: the weights are those of base and adapter, or nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.command import LEARNS, TINY
from helpers.merges import MODEL, ONE_FILE, RECORD, adapted, from_elsewhere, loaded, logits, merge
from helpers.tiny_model import tiny_base
from runner.config.settings import ModelSettings
from runner.models.model import byte_tokenizer, find_base, load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def trained(trained):
    """A run that has learnt something, by its overrides, trained once for all tests."""
    return lambda *words: trained(*LEARNS, *words)


@pytest.mark.report
def test_a_merge_leaves_a_model_that_plain_transformers_loads(cli, trained):
    start = trained()
    run = merge(cli, start)
    assert run.code == 0
    assert run.files() == RECORD | MODEL | ONE_FILE
    expected = adapted(tiny_base(), start / "adapter")
    assert (logits(tiny_base()) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(loaded(run.folder)), expected, atol=1e-4, rtol=1e-3)
    metrics = run.record["metrics"]
    assert metrics["merge_kl"] < 1e-8
    assert metrics["merge_max_logit_difference"] < 1e-3
    assert metrics["merge_greedy_agreement"] == 1
    assert run.record["merge"]["base"] == "original"
    assert [parent["path"] for parent in run.record["parents"]] == [str(start)]


def test_the_base_of_a_folder_keeps_its_type_and_is_written_in_shards(cli, local_base):
    source = ("model.weights=pretrained", f"model.path={local_base}")
    assert cli(*LEARNS, *source, folder="start").code == 0
    run = merge(cli, "start", "merge.max_shard_size=100KB")
    assert run.code == 0
    shards = {name for name in run.files() if name.endswith(".safetensors")}
    assert run.files() == RECORD | MODEL | shards | {"model/model.safetensors.index.json"}
    assert len(shards) > 1
    assert all((run.folder / shard).stat().st_size < 110_000 for shard in shards)
    index = json.loads((run.folder / "model/model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(run.folder / "model" / file, "pt") as stream:
            assert stream.get_tensor(name).dtype == torch.bfloat16
    config = json.loads((run.folder / "model/config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["LlamaForCausalLM"])

    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(local_base, dtype=torch.float32)
    expected = adapted(base, Path("start/adapter"))
    found = logits(loaded(run.folder))
    assert 0 < (found - expected).abs().max() < 0.02  # bfloat16 rounds the merged weights, and nothing else
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_a_merge_into_float32_is_exact(cli, local_base):
    source = ("model.weights=pretrained", f"model.path={local_base}")
    assert cli(*LEARNS, *source, folder="start").code == 0
    run = merge(cli, "start", "merge.dtype=float32")
    assert run.code == 0
    assert run.record["metrics"]["merge_max_logit_difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("lora=dora",),
        ("lora=rslora",),
        ("lora=pissa",),
        ("lora=ia3",),
        ("lora=adalora",),
        ("lora.bias=all",),
        ("lora.modules_to_save=[lm_head]",),
        ("lora.modules_to_save=[embed_tokens]",),
        ("lora.target_modules='.*(embed_tokens|q_proj)'",),
        ("lora.target_modules=[q_proj]", "+lora.rank_pattern={layers.0.self_attn.q_proj:4}"),
    ],
    ids=lambda words: words[-1],
)
def test_every_kind_of_adapter_that_changes_weights_is_merged_exactly(cli, trained, words):
    start = trained(*words)
    run = merge(cli, start)
    assert run.code == 0
    expected = adapted(tiny_base(), start / "adapter")
    assert (logits(tiny_base()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded(run.folder)), expected, atol=2e-4, rtol=1e-3)
    assert run.record["metrics"]["merge_kl"] < 1e-7
    assert run.files() == RECORD | MODEL | ONE_FILE
    tied = json.loads((run.folder / "model/config.json").read_text())["tie_word_embeddings"]
    assert tied == ("lm_head.weight" not in load_file(run.folder / "model/model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 6, 7]),
        LoraConfig(
            target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 2}, alpha_pattern={"q_proj": 3}
        ),
        LoHaConfig(target_modules=["q_proj"], init_weights=False),
        LoKrConfig(target_modules=["q_proj"], init_weights=False),
        OFTConfig(target_modules=["q_proj"], oft_block_size=8),
        VeraConfig(target_modules=["q_proj"], r=8),
    ],
    ids=lambda config: type(config).__name__,
)
def test_an_adapter_from_elsewhere_is_merged_exactly(cli, config):
    from_elsewhere(tiny_base(), "start", config)
    run = merge(cli, "start", "model=tiny", "trainer.precision=fp32", "merge.max_kl=1e-6")
    assert run.code == 0
    assert any("no record of the base" in note for note in run.record["notes"])
    expected = adapted(tiny_base(), Path("start"))
    assert (logits(tiny_base()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded(run.folder)), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("option", ["nf4", "int8"])
def test_an_adapter_of_a_quantised_base_goes_into_the_weights_that_fit_it_better(cli, trained, option):
    start = trained(f"quantization={option}", "trainer.precision=auto")
    run = merge(cli, start, "merge.dtype=float32", "merge.max_kl=0.05")
    assert run.code == 0
    assert run.files() == RECORD | MODEL | ONE_FILE
    merge_record = run.record["merge"]
    kls = {name: result["kl"] for name, result in merge_record["bases"].items()}
    assert kls.keys() == {"dequantised", "original"}
    assert merge_record["base"] == min(kls, key=lambda name: kls[name])
    assert run.record["metrics"]["merge_kl"] == min(kls.values())
    config = json.loads((run.folder / "model/config.json").read_text())
    assert "quantization_config" not in config
    weights = load_file(run.folder / "model/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_checkpoint_with_other_names_is_merged_as_a_whole(cli, tmp_path):
    """Mixtral's files hold every expert on its own, its model holds them as one tensor."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        eos_token_id=257,
        bos_token_id=256,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained("moe")
    byte_tokenizer().save_pretrained("moe")
    model = AutoModelForCausalLM.from_pretrained("moe")
    from_elsewhere(
        model, "start", LoraConfig(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"])
    )
    run = merge(cli, "start", "model=smollm2-135m", "model.path=moe")
    assert run.code == 0
    assert any("merged as a whole" in note for note in run.record["notes"])
    names = set(load_file("moe/model.safetensors"))
    assert set(load_file(run.folder / "model/model.safetensors")) == names
    expected = adapted(AutoModelForCausalLM.from_pretrained("moe"), Path("start"))
    torch.testing.assert_close(logits(loaded(run.folder)), expected, atol=2e-4, rtol=1e-3)


def test_a_classifier_keeps_its_head(cli):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    rows = [
        {"text": f"{mood} number {n}", "label": mood} for n in range(6) for mood in ("good", "bad", "so-so")
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("recipe=classify", "data=file", "data.path=rows.jsonl", *TINY[:3], "trainer.learning_rate=2e-2")
    assert cli(*words, folder="start").code == 0
    run = merge(cli, "start")
    assert run.code == 0
    assert run.files() == (RECORD | MODEL | ONE_FILE) - {"model/generation_config.json"}
    assert run.record["metrics"]["merge_tokens_compared"] == 8
    model = AutoModelForSequenceClassification.from_pretrained(run.folder / "model")
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    whole = load_model(base, None, torch.float32, 0, ["bad", "good", "so-so"])
    whole = PeftModel.from_pretrained(whole, "start/adapter")
    torch.testing.assert_close(logits(model), logits(whole), atol=1e-4, rtol=1e-3)


def test_rows_are_found_where_most_cannot_be_trained_on(cli):
    rows = [{"prompt": "so " * 400, "completion": "no"}] * 300 + [{"prompt": "Why?", "completion": "so"}] * 5
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = ("data=file", "data.path=rows.jsonl", "data.max_rows=null", "data.overlong=truncate")
    assert cli(*LEARNS, *start, folder="start").code == 0
    run = merge(cli, "start", "merge.prompts=1")
    assert run.code == 0
    assert run.record["data"]["train"]["rows"] <= 5
