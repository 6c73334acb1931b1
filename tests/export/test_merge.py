"""Merging through the real command line: the weights are those of base and adapter, or nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.command import ADAPTER, LEARNS, TINY, Run
from helpers.tiny_model import tiny_base
from runner.config.settings import ModelSettings
from runner.models.model import byte_tokenizer, find_base, load_model

RECORD = {"config.yaml", "run.json", "report.html"}
MODEL = {
    f"model/{name}"
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    )
}
ONE_FILE = {"model/model.safetensors"}


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 67, device=model.device)[None]).logits.cpu()


def adapted(base: torch.nn.Module, folder: Path) -> torch.Tensor:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(base, folder))


def loaded(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


@pytest.fixture(scope="session")
def trained(trained):
    """A run that has learnt something, by its overrides, trained once for all tests."""
    return lambda *words: trained(*LEARNS, *words)


@pytest.fixture
def local_base(tmp_path):
    """A model folder of bfloat16 weights in two files, its embeddings tied."""
    model = tiny_base().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="150KB")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    return tmp_path / "base"


def from_elsewhere(model: torch.nn.Module, folder: str, config: LoraConfig) -> None:
    """Save an adapter of random weights with plain PEFT."""
    config.task_type = "CAUSAL_LM"
    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    wrapped.save_pretrained(folder)


def merge(cli, adapter: Path | str, *words: str, folder: str = "merged") -> Run:
    return cli("recipe=merge", f"adapter={adapter}", *words, folder=folder)


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


@pytest.mark.parametrize("option", ["prefix", "prompt", "ptuning"])
def test_an_adapter_of_the_prompt_is_refused(cli, trained, option, capsys):
    run = merge(cli, trained(f"lora={option}"))
    assert run.code == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert not run.folder.exists()


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


def test_another_base_of_the_same_shape_is_refused(cli, trained, capsys):
    run = merge(cli, trained(), "seed=1")
    assert run.code == 2
    assert "belongs to another base" in capsys.readouterr().err
    assert not run.folder.exists()


def test_an_adapter_that_does_not_fit_the_base_is_refused(cli, trained, capsys, tmp_path):
    """Without the record of its base, only the shapes can tell."""
    from transformers import AutoModelForCausalLM

    alone = tmp_path / "alone"
    shutil.copytree(trained() / "adapter", alone)
    (alone / "base.json").unlink()
    config = tiny_base().config
    for number, change in enumerate(({"hidden_size": 32}, {"num_hidden_layers": 1})):
        other = type(config).from_dict(config.to_dict() | change)
        AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "other")
        byte_tokenizer().save_pretrained(tmp_path / "other")
        source = ("model=smollm2-135m", "model.path=other", "data.path=embedded:orders_train")
        run = merge(cli, alone, *source, folder=f"merged{number}")
        assert run.code == 2
        assert f"adapter={alone}" in capsys.readouterr().err
        assert not run.folder.exists()


def test_what_is_not_the_adapter_model_is_not_kept(cli, trained, monkeypatch, capsys):
    from runner.export.merge import Skeleton

    def forget(self, path, unit, tensors):
        names = [name for name in self._slots if name.startswith(f"{path}.")]
        return {name: self._read(tensors, name) for name in names}

    monkeypatch.setattr(Skeleton, "_merge", forget)
    run = merge(cli, trained())
    assert run.code == 1
    assert "is not the adapter model" in capsys.readouterr().err
    assert run.files() == RECORD
    assert run.record["status"] == "failed"
    assert run.record["metrics"]["merge_kl"] > 0.01


def test_a_failure_in_the_middle_leaves_no_half_model(cli, trained, monkeypatch):
    from runner.export.merge import Skeleton

    def fail(self, tensors, names):
        yield from ()
        raise OSError("no space left")

    monkeypatch.setattr(Skeleton, "merged", fail)
    run = merge(cli, trained())
    assert run.code == 1
    assert run.files() == RECORD


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(cli, trained, monkeypatch, capsys):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    run = merge(cli, trained())
    assert run.code == 2
    assert "0.00 GB free" in capsys.readouterr().err
    assert not run.folder.exists()


def test_a_folder_that_holds_something_is_left_alone(cli, trained, capsys):
    Path("merged").mkdir()
    Path("merged/mine.txt").write_text("mine")
    assert merge(cli, trained()).code == 2
    assert [path.name for path in Path("merged").iterdir()] == ["mine.txt"]


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


# --- several adapters


def delta(folder: Path, name: str) -> torch.Tensor:
    """What the merged or adapted weights of one layer have over the base's."""
    file = folder / "model/model.safetensors"
    return load_file(file)[name] - tiny_base().state_dict()[name]


LAYER = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["r8", "rslora"])
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_weighted_adapters_add_up(cli, trained, kind, option):
    one, two = (trained(f"lora={option}", "lora.r=8", f"data.max_rows={rows}") for rows in (24, 20))
    for folder, start in (("a", one), ("b", two)):
        assert merge(cli, start, folder=folder).code == 0
    rank = ("merge.svd_rank=16",) if kind == "svd" else ()
    words = ("merge.weights=[0.7,-0.4]", f"merge.combination_type={kind}", *rank)
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 0
    assert run.files() == RECORD | MODEL | ONE_FILE | ADAPTER
    expected = 0.7 * delta(Path("a"), LAYER) - 0.4 * delta(Path("b"), LAYER)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(delta(run.folder, LAYER), expected, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        logits(loaded(run.folder)), adapted(tiny_base(), run.folder / "adapter"), atol=1e-4, rtol=1e-3
    )
    assert [parent["path"] for parent in run.record["parents"]] == [str(one), str(two)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("merge.combination_type=linear",),
        ("merge.combination_type=ties", "merge.density=0.5", "merge.majority_sign_method=frequency"),
        ("merge.combination_type=dare_linear", "merge.density=0.5"),
        ("merge.combination_type=dare_ties_svd", "merge.density=0.5", "merge.svd_rank=4"),
        ("merge.combination_type=magnitude_prune", "merge.density=0.5"),
    ],
    ids=lambda words: words[0],
)
def test_every_combination_gives_an_adapter_and_its_merge(cli, trained, words):
    one, two = trained("lora=r8"), trained("lora=r8", "data.max_rows=20")
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 0
    assert run.files() == RECORD | MODEL | ONE_FILE | ADAPTER
    expected = adapted(tiny_base(), run.folder / "adapter")
    assert (logits(tiny_base()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded(run.folder)), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("merge.weights=[1]",), "1 weights for 2 adapters"),
        (("merge.combination_type=ties",), "merge.density"),
        (("merge.density=0.5",), "no effect on linear"),
        (("merge.svd_rank=4",), "no effect on linear"),
        (("merge.majority_sign_method=frequency",), "no effect on linear"),
        (("merge.max_shard_size=big",), "is not a size"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_contradicting_settings_are_refused(cli, trained, capsys, words, said):
    one, two = trained("lora=r8"), trained("lora=r8", "data.max_rows=20")
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not run.folder.exists()


def test_adapters_that_cannot_be_combined_are_refused_together(cli, trained, capsys):
    plain, dora, ia3, other = trained("lora=r8"), trained("lora=dora"), trained("lora=ia3"), trained()
    run = merge(cli, f"[{plain},{dora},{ia3},{other}]")
    assert run.code == 2
    said = capsys.readouterr().err
    assert "3 config errors" in said
    assert "use_dora" in said
    assert "is IA3" in said
    assert "r=8" in said
    assert "r=16" in said
    assert not run.folder.exists()


def test_a_rank_that_the_layers_have_no_room_for_is_refused(cli, trained, capsys):
    one, two = trained("lora=r8"), trained("lora=r8", "data.max_rows=20")
    run = merge(cli, f"[{one},{two}]", "merge.combination_type=svd", "merge.svd_rank=40")
    assert run.code == 2
    assert "merge.svd_rank=32, or less" in capsys.readouterr().err
    assert not run.folder.exists()


def test_one_adapter_can_be_merged_with_a_weight(cli, trained):
    start = trained("lora=r8")
    assert merge(cli, start, folder="whole").code == 0
    run = merge(cli, start, "merge.weights=[0.5]")
    assert run.code == 0
    torch.testing.assert_close(
        delta(run.folder, LAYER), 0.5 * delta(Path("whole"), LAYER), atol=1e-5, rtol=1e-3
    )


def update_norm(folder: Path) -> float:
    """The norm of what a merge has added to the base, over all layers."""
    base, merged = tiny_base().state_dict(), load_file(folder / "model/model.safetensors")
    return sum(float((merged[name] - base[name]).square().sum()) for name in merged) ** 0.5


@pytest.fixture(scope="session")
def relatives(trained) -> tuple[Path, Path]:
    """An adapter, and one that was trained on from it."""
    first = trained("lora=r8")
    return first, trained(f"adapter={first}", "lora.r=8", "trainer.learning_rate=1e-3")


@pytest.mark.parametrize(
    "words",
    [
        (),
        pytest.param(("merge.combination_type=cat",), marks=pytest.mark.slow),
        pytest.param(("merge.combination_type=svd",), marks=pytest.mark.slow),
        ("merge.combination_type=ties", "merge.density=1.0"),
        ("merge.weights=[0.7,0.3]",),
    ],
    ids=lambda words: "".join(words[:1]) or "default",
)
def test_related_adapters_are_averaged_and_said_to_be_related(cli, relatives, words):
    one, two = relatives
    for folder, start in (("a", one), ("b", two)):
        assert merge(cli, start, folder=folder).code == 0
    parts = [update_norm(Path("a")), update_norm(Path("b"))]
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 0
    found = run.record["merge"]["combination"]
    given = [0.7, 0.3] if "merge.weights=[0.7,0.3]" in words else [0.5, 0.5]
    assert found["weights"] == ([1.0, 1.0] if "ties" in "".join(words) else given)
    assert found["norms"] == pytest.approx(parts, rel=1e-3)
    assert found["norm"] == pytest.approx(update_norm(run.folder), rel=1e-3)
    assert found["norm"] == pytest.approx(sum(parts) / 2, rel=0.05), "as large as they are, not four times"
    assert len(found["related"]) == 1
    assert any("continues" in note for note in run.record["notes"])
    assert [part["adapter"] for part in found["parents"]] == [str(one / "adapter"), str(two / "adapter")]
    assert all(part["kl"] < part["kl_of_base"] for part in found["parents"])


def test_weights_that_inflate_are_said(cli, relatives, capsys):
    one, two = relatives
    run = merge(cli, f"[{one},{two}]", "merge.weights=[20,20]")
    assert run.code == 0
    notes = "\n".join(run.record["notes"])
    assert "the combined update is 40 times as large as those of its adapters" in notes
    printed = capsys.readouterr().out
    assert "weight 20, norm of its update" in printed
    assert "top-1 agreement" in printed


def test_a_combination_that_is_none_of_its_adapters_is_said(cli, relatives):
    """It is merged faithfully, which the comparison with itself says, and what was learnt is gone."""
    run = merge(cli, f"[{relatives[0]},{relatives[1]}]", "merge.weights=[-1,-1]")
    assert run.code == 0
    assert run.record["metrics"]["merge_kl"] < 1e-6
    assert any("than the untrained base does" in note for note in run.record["notes"])


@pytest.mark.slow
def test_linear_weights_of_one_adapter_twice_add_up(cli, trained):
    """PEFT's own would give the square of the sum of their roots, which is 4 for two at weight 1."""
    start = trained("lora=r8")
    assert merge(cli, start, folder="whole").code == 0
    for number, (weights, expected) in enumerate((("[1,1]", 2.0), ("[0.5,0.5]", 1.0), ("[1.5,-0.5]", 1.0))):
        run = merge(cli, f"[{start},{start}]", f"merge.weights={weights}", folder=f"twice{number}")
        found, wanted = delta(run.folder, LAYER), expected * delta(Path("whole"), LAYER)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)


# --- bases and adapters that are not to be had


@pytest.mark.parametrize(("word", "said"), [("adapter=nowhere", "nowhere"), ("adapter=null", "adapter")])
def test_a_missing_adapter_is_refused(cli, capsys, word, said):
    run = cli("recipe=merge", "model=tiny", word)
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not run.folder.exists()


def test_a_base_whose_own_weights_are_quantised_is_refused(cli, local_base, capsys):
    from_elsewhere(tiny_base(), "start", LoraConfig(target_modules=["q_proj"]))
    file = local_base / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(values))
    run = merge(cli, "start", "model=smollm2-135m", f"model.path={local_base}")
    assert run.code == 2
    assert "quantised themselves" in capsys.readouterr().err
    assert not run.folder.exists()
