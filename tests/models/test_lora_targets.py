"""``all-linear`` is every linear layer of the text path and all experts, whatever the model is made of."""

import copy
import json
from collections import Counter
from math import prod
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.command import LEARNS, QUIET, TINY, one
from helpers.tiny_model import KINDS, build, config_of, random_model, using
from runner.core.errors import ConfigError
from runner.core.paths import ARCHITECTURES
from runner.models.adapted import adapted, parameters_of
from runner.models.adapter import add_adapter
from runner.models.build import peft_config
from runner.models.lora_targets import fit_targets, weights_of
from runner.plan.built import adapter_shapes, of_model

ATTENTION = "q_proj k_proj v_proj o_proj"
MLP = "gate_proj up_proj down_proj"
EXPERTS = "experts.gate_up_proj experts.down_proj"
LATENT = "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj"
SHARED = "shared_experts.gate_proj shared_experts.up_proj shared_experts.down_proj"
OF_ONE = SHARED.replace("experts", "expert")
# Of each kind: what is adapted, and which matrices are not, but embeddings and the head.
EXPECTED = {
    "qwen3": (f"{ATTENTION} {MLP}", ""),
    "phi3": ("qkv_proj o_proj gate_up_proj down_proj", ""),
    "gpt2": ("c_attn c_proj c_fc", ""),
    "qwen3_moe": (f"{ATTENTION} {EXPERTS}", "gate"),
    "qwen3_next": (
        f"{ATTENTION} {EXPERTS} {OF_ONE} in_proj_qkvz in_proj_ba out_proj",
        "gate shared_expert_gate conv1d",
    ),
    "qwen3_5_moe_text": (
        f"{ATTENTION} {EXPERTS} {OF_ONE} in_proj_qkv in_proj_z in_proj_a in_proj_b out_proj",
        "gate shared_expert_gate conv1d",
    ),
    "gpt_oss": (f"{ATTENTION} {EXPERTS}", "router experts.gate_up_proj_bias experts.down_proj_bias"),
    "llama4_text": (f"{ATTENTION} {MLP} {EXPERTS} {OF_ONE}", "router"),
    "deepseek_v3": (f"{LATENT} {MLP} {EXPERTS} {SHARED}", "gate"),
    "glm4_moe_lite": (f"{LATENT} {MLP} {EXPERTS} {SHARED}", "gate"),
    "hunyuan_v1_moe": (f"{ATTENTION} {EXPERTS} {MLP}", "wg"),
    "granitemoehybrid": (
        f"{ATTENTION} {EXPERTS} input_linear output_linear in_proj",
        "router conv1d out_proj",
    ),
    "falcon_h1": (f"{ATTENTION} {MLP} in_proj", "conv1d out_proj"),
    "lfm2_moe": (f"q_proj k_proj v_proj out_proj {EXPERTS} in_proj w1 w2 w3", "gate conv"),
    "gemma3": (f"{ATTENTION} {MLP}", "vision_tower multi_modal_projector"),
}
EMBEDDINGS = {"embed_tokens", "lm_head", "wte", "wpe", "norms and biases"}


def lora(**more) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | more))


def lora_of(*words: str):
    """The PEFT config of a run."""
    return peft_config(one(*TINY, *words), "CAUSAL_LM")


def wrap(model, config: LoraConfig, **how):
    weights, before = weights_of(model), parameters_of(model)
    given = copy.deepcopy(config)
    wrapped = add_adapter(model, config, 0, None)
    return wrapped, adapted(wrapped, before, weights, given)


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_adapted_follows_from_the_model(kind):
    model = build(kind, "meta")
    total = sum(each.numel() for each in model.parameters())
    wrapped, found = wrap(model, lora())
    on, left = EXPECTED[kind]
    assert found.modules.keys() == set(on.split())
    matrices = {
        kind for kind in found.frozen if not kind.startswith(("ln_", "sinks", "A_log", "D", "dt_", "scale"))
    }
    assert matrices - EMBEDDINGS == set(left.split())
    assert found.total == total
    assert found.covered + sum(found.frozen.values()) == total
    assert not found.experts
    added = {name for name, each in wrapped.named_parameters() if "lora_A" in name}
    assert len(added) == sum(found.modules.values())
    assert wrapped.peft_config["default"].target_modules is not None


@pytest.mark.parametrize(
    "kind", ["qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoehybrid", "falcon_h1", "hunyuan_v1_moe", "gpt2"]
)
def test_an_adapter_is_trained_everywhere_and_loads_in_plain_peft(kind, tmp_path: Path):
    wrapped, _ = wrap(build(kind), lora())
    ids = torch.arange(3, 43).reshape(2, 20)
    for _ in range(2):
        wrapped(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for each in wrapped.parameters():
                if each.requires_grad:
                    each -= 0.5 * each.grad
    frozen = [
        name
        for name, each in wrapped.named_parameters()
        if each.requires_grad and not (each.grad is not None and each.grad.any())
    ]
    assert frozen == []
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build(kind), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected, own = wrapped(input_ids=ids).logits, loaded(input_ids=ids).logits
        alone = build(kind).eval()(input_ids=ids).logits
    assert torch.equal(own, expected)
    assert (own - alone).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3", "falcon_h1", "gpt2"])
@pytest.mark.parametrize("quantized", [False, True])
def test_the_plan_counts_what_is_adapted(kind, quantized):
    model, facts = build(kind, "meta"), config_of(kind).to_dict()
    architecture = of_model(build(kind, "meta"), config_of(kind), facts=facts)
    section = {"_target_": "peft.LoraConfig", "r": 2, "target_modules": "all-linear"}
    planned = adapter_shapes(architecture, section, None, quantized)
    wrapped = add_adapter(model, fit_targets(lora(), model, quantized), 0, None)
    made = [tuple(each.shape) for each in wrapped.parameters() if each.requires_grad]
    assert Counter(planned.added) == Counter(made)
    experts = sum(each.numel() for name, each in build(kind, "meta").named_parameters() if "experts." in name)
    assert (planned.rebuilt > 0) == (experts > 0)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gemma4-experts"])
def test_a_pass_keeps_the_experts_that_it_puts_together_as_the_plan_counts(kind):
    """Those of all layers, until the backward pass: a second copy of most of the model."""
    wrapped = add_adapter(build(kind), lora(), 0, None).train()
    own = {each.untyped_storage().data_ptr() for each in wrapped.parameters()}
    shapes = {
        tuple(each.shape) for name, each in build(kind, "meta").named_parameters() if "experts." in name
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.element_size()
        if storage.data_ptr() not in own and any(size == prod(shape) for shape in shapes):
            kept[storage.data_ptr()] = tensor
        return tensor

    ids = torch.arange(3, 34)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = wrapped(input_ids=ids, labels=ids).loss
    assert loss.requires_grad
    facts = config_of(kind).to_dict()
    architecture = of_model(build(kind, "meta"), config_of(kind), facts=facts)
    section = {"_target_": "peft.LoraConfig", "r": 2, "target_modules": "all-linear"}
    found = sum(each.untyped_storage().nbytes() // each.element_size() for each in kept.values())
    assert found == adapter_shapes(architecture, section, None).rebuilt


def test_a_quantised_shared_expert_is_missed_and_said():
    """PEFT takes its layers' names for those of the routed ones, and 4-bit weights for no matrices."""
    model = build("deepseek_v3", "meta")
    weights, before = weights_of(model), parameters_of(model)
    wrapped = add_adapter(model, fit_targets(lora(), model, quantized=True), 0, None)
    found = adapted(wrapped, before, weights, lora())
    assert {name.rpartition(".")[2] for name in found.missed} == set(MLP.split())
    assert any("shared_experts.down_proj" in note for note in found.warnings())


@pytest.mark.parametrize(
    ("kind", "targets", "warned"),
    [
        ("qwen3_moe", ["q_proj"], "4 expert weights stay frozen, 4"),
        ("deepseek_v3", [*ATTENTION.split(), *MLP.split()], "shared_experts.gate_proj"),
        ("granitemoehybrid", "all-linear", "reads its weight past an adapter"),
        ("qwen3", ["q_proj"], None),
    ],
)
def test_what_stays_frozen_without_being_meant_to_is_said(kind, targets, warned):
    _, found = wrap(build(kind, "meta"), lora(target_modules=targets))
    notes = " ".join(found.warnings())
    assert (warned in notes) if warned else not notes


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
        {"target_modules": ".*_proj", "exclude_modules": ".*mlp.*"},
    ],
)
def test_layers_that_the_config_leaves_out_are_not_said_to_be_missed(more):
    _, found = wrap(build("qwen3", "meta"), lora(**more))
    assert found.modules
    assert not found.warnings()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lora_dropout": 0.1}, "lora.lora_dropout=0"),
        ({"use_dora": True}, "lora.use_dora=false"),
        ({"init_lora_weights": "pissa"}, "lora.init_lora_weights=true"),
    ],
)
def test_what_experts_do_not_take_is_refused(more, said):
    with pytest.raises(ConfigError, match=said):
        fit_targets(lora(**more), build("qwen3_moe", "meta"), False)
    assert fit_targets(lora(**more), build("qwen3", "meta"), False).target_modules


def test_exclusions_hold_for_experts():
    config = lora(exclude_modules=["down_proj", "o_proj"])
    _, found = wrap(build("qwen3_moe", "meta"), config)
    assert found.modules == dict.fromkeys(("q_proj", "k_proj", "v_proj", "experts.gate_up_proj"), 2)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_layers_may_be_chosen_of_all(kind):
    wrapped, found = wrap(build(kind, "meta"), lora_of("lora.layers_to_transform=[1]", "lora.lora_dropout=0"))
    names = {name for name, each in wrapped.named_parameters() if each.requires_grad}
    assert names
    assert all(".layers.1." in name for name in names)
    assert set(found.modules.values()) == {1}
    assert wrapped.peft_config["default"].layers_to_transform is None
    section = one(*TINY, "lora.layers_to_transform=[1]", "lora.lora_dropout=0").lora
    architecture = of_model(build(kind, "meta"), config_of(kind), facts=config_of(kind).to_dict())
    made = [tuple(each.shape) for name, each in wrapped.named_parameters() if name in names]
    assert Counter(adapter_shapes(architecture, section, None).added) == Counter(made)


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    return random_model(tmp_path_factory.mktemp("experts") / "model", "qwen3_moe", **KINDS["qwen3_moe"])


def test_a_run_says_and_records_what_is_adapted(cli, experts, capsys):
    run = cli(*TINY, *QUIET, *using(experts), "trainer.max_steps=2")
    assert run.code == 0
    assert run.record["adapted"]["modules"]["experts.gate_up_proj"] == 2
    assert 0.6 < run.record["adapted"]["share"] < 0.8
    assert "lora 6" in " ".join(capsys.readouterr().out.split())
    names = load_file(run.folder / "adapter/adapter_model.safetensors")
    assert sum(".experts." in name for name in names) == 8


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("lora.lora_dropout=0.1", 2, "lora.lora_dropout=0"),
        ("lora.target_modules=[q_proj] lora.require_all=true", 2, "10 matrices have no adapter"),
        ("lora.target_modules=[down_proj] lora.lora_dropout=0.1", 2, "has no modules 'down_proj'"),
        ("lora.require_all=1", 2, "lora.require_all"),
        ("lora.layers_to_transform=[0] lora.require_all=true", 2, "6 matrices have no adapter"),
        ("lora.layers_to_transform=[2]", 2, "allowed: 0 to 1"),
        ("lora.layers_pattern=layers", 2, "layers_to_transform` must also be specified"),
        ("lora.exclude_modules=.*", 2, "all-linear without lora.exclude_modules"),
        ("lora.target_modules=all_linear", 2, "did you mean 'all-linear'?"),
        ("lora.target_modules=[qproj]", 2, "did you mean 'q_proj'? it has: "),
        (
            "lora.init_lora_weights=mica lora.use_dora=true lora.target_modules=[q_proj]",
            2,
            "nothing was loaded",
        ),
        (
            "lora=pissa lora.target_modules=[q_proj] lora.target_parameters=[mlp.experts.gate_up_proj]",
            2,
            "nothing was loaded: lora: PEFT cannot make this adapter",
        ),
        (
            "lora=pissa lora.target_modules=[k_proj] lora.r=64",
            2,
            "makes a matrix of (32, 64) for model.layers.0",
        ),
        ("lora.use_qalora=true", 2, "lora.use_qalora: PEFT has QALoRA for a base of GPTQ's format alone"),
        ("lora=prompt lora.require_all=true", 2, "puts no adapter on any matrix"),
    ],
)
def test_a_run_that_would_leave_experts_out_is_refused(cli, experts, capsys, words, code, said):
    run = cli(*TINY, *QUIET, *using(experts), *words.split())
    assert run.code == code
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_experts_are_merged(cli, kind, tmp_path):
    """The merge compares with the adapter model itself, and fails where it is not that."""
    model = random_model(tmp_path / "model", kind, **KINDS[kind])
    assert cli(*LEARNS, *using(model), "lora.require_all=true").code == 0
    merged = cli("recipe=merge", "adapter=run", folder="merged")
    assert merged.code == 0
    before, after = (load_file(path / "model.safetensors") for path in (model, merged.folder / "model"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(".experts." in name for name in changed)
    assert not any(".gate.weight" in name for name in changed)


@pytest.mark.slow
def test_the_bytes_that_quantisation_leaves_are_said(cli, experts):
    run = cli(
        *TINY, *QUIET, *using(experts), "quantization=nf4", "lora.require_all=true", "trainer.max_steps=1"
    )
    assert run.code == 0
    # 2 layers of 4 experts of 3 matrices of 64 x 32, in 4 bytes
    assert any("0.19 MiB with 32 bits a number" in note for note in run.record["notes"])


def test_no_adapter_is_on_a_tower_whose_positions_are_a_table_of_three_dimensions():
    facts = json.loads((ARCHITECTURES / "gemma4-e2b-it.json").read_text())
    layers = {"num_hidden_layers": 5, "num_kv_shared_layers": 0}
    facts["text_config"] |= layers | {"layer_types": facts["text_config"]["layer_types"][:5]}
    for tower in ("vision_config", "audio_config"):
        facts[tower]["num_hidden_layers"] = 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(facts.pop("model_type"), **facts))
    found = wrap(model, lora())[1]
    assert not found.banks
    assert {"vision_tower", "audio_tower"} <= found.frozen.keys()
    assert set(f"{ATTENTION} {MLP}".split()) <= found.modules.keys()
    assert "position_embedding_table" not in found.modules
