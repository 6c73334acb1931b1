"""Runs on a frozen base in e4m3, and what is refused.

Without CUDA the products are computed in float32 from the same numbers, which is open to tests only: there
``support.unsupported`` is replaced.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import QUIET, TINY
from helpers.packs import run_pack
from helpers.tiny_model import TINY_MODEL, using
from recipes import OBJECTIVES
from runner.cli import run_config
from runner.config.settings import ModelSettings
from runner.models.adapter import add_adapter
from runner.models.build import quantization_config
from runner.models.fp8 import Fp8Config, support
from runner.models.fp8.linear import Fp8Linear
from runner.models.model import choose_precision, find_base, load_model

LAYERS = 14  # linear ones of the tiny model, without its head


FP8 = (*TINY, *QUIET, "trainer.precision=auto", "quantization=fp8")


def losses_of(run):
    return [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line]


def test_a_checkpoint_with_a_nan_is_refused(cli, anywhere, tiny_model, tmp_path, capsys):
    from safetensors.torch import save_file

    from helpers.tiny_model import copy

    folder = copy(tiny_model, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert cli(*FP8, *using(folder)).code == 2
    assert "model.layers.1.mlp.up_proj.weight_scale" in capsys.readouterr().err


def test_dora_starts_from_the_norms_of_the_weights_that_are_multiplied_with(anywhere):
    from peft import LoraConfig

    base = load_model(find_base(TINY_MODEL), Fp8Config(), torch.bfloat16, seed=0)
    name = "model.layers.0.mlp.down_proj"
    norms = base.get_submodule(name).dequantize().norm(dim=1)
    config = LoraConfig(r=4, target_modules=["down_proj"], use_dora=True)
    wrapped = add_adapter(base, config, 0, None).base_model.model.get_submodule(name)
    magnitude = wrapped.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude.float(), norms, rtol=1e-2, atol=0)


def test_an_adapter_is_drawn_as_on_the_full_base_and_trained_in_bf16(cli, anywhere, tiny_model, monkeypatch):
    """Drawn in e4m3 its values would be those of another seed."""
    from runner.training import load

    drawn_values = {}
    add = load.add_adapter

    def keep(model, *args):
        wrapped = add(model, *args)
        drawn_values.update({n: p.detach().clone() for n, p in wrapped.named_parameters() if "lora_A" in n})
        return wrapped

    monkeypatch.setattr(load, "add_adapter", keep)
    plain = cli(*TINY, *QUIET, "model.dtype=bfloat16", *using(tiny_model), folder="plain")
    expected = dict(drawn_values)
    run = cli(*FP8, "trainer.precision=bf16", "trainer.max_steps=5", *using(tiny_model))
    assert plain.code == run.code == 0
    assert len(expected) == LAYERS
    assert all(
        torch.equal(drawn_values[name].bfloat16(), value.bfloat16()) for name, value in expected.items()
    )
    weights = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(bool(tensor.any()) for tensor in weights.values())
    losses = [
        [line["loss"] for line in each.lines("metrics.jsonl") if "loss" in line] for each in (run, plain)
    ]
    assert len(losses[0]) == 5
    assert losses[0][:3] == pytest.approx(losses[1], rel=0.01)
    counts = [each.record["metrics"]["total_parameters"] for each in (run, plain)]
    assert counts[0] == counts[1]

    merged = cli("recipe=merge", "adapter=run", "merge.max_kl=0.05", folder="merged")
    assert merged.code == 0
    assert merged.record["merge"]["bases"].keys() == {"dequantised", "original"}
    assert "quantization_config" not in json.loads((merged.folder / "model/config.json").read_text())


@pytest.mark.slow
def test_a_pack_trains_like_solo_runs(cli, anywhere, tmp_path):
    base = (*FP8, "trainer.precision=bf16", "trainer.learning_rate=2e-3")
    cells = [("lora.r=4",), ("lora.r=8", "seed=0")]
    packed = run_pack(tmp_path / "pack", base, cells)
    for number, cell in enumerate(cells):
        solo = cli(*base, *cell, folder=f"solo{number}")
        assert losses_of(packed[number]) == pytest.approx(losses_of(solo), rel=2e-3)
        totals = [run.record["metrics"]["total_parameters"] for run in (packed[number], solo)]
        assert totals[0] == totals[1]


def test_a_new_head_of_classes_is_not_quantised(cli, anywhere, tmp_path):
    """Of 16 classes: ``torch._scaled_mm`` would take its weight."""
    rows = [{"text": f"the sun is {number}", "label": f"number {number}"} for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("recipe=classify", "data=file", "data.path=rows.jsonl", "model=tiny", "quantization=fp8")
    listed = (*words, "quantization.modules_to_not_convert=[q_proj]")
    (config,) = run_config.check(run_config.parse(list(listed), OBJECTIVES)).configs
    made = quantization_config(config, choose_precision(config), "SEQ_CLS")
    assert made.modules_to_not_convert == ["q_proj", "score"]
    run = cli(*words, "trainer.max_steps=2", "trainer.learning_rate=1e-2", "trainer.save_strategy=no")
    assert run.code == 0
    weights = load_file(run.folder / "adapter/adapter_model.safetensors")
    (head,) = [tensor for name, tensor in weights.items() if "score" in name]
    assert head.dtype in (torch.bfloat16, torch.float32)
    assert head.shape == (16, 64)


@pytest.fixture(scope="session")
def odd_sizes(tmp_path_factory):
    """A model whose MLP is 120 wide, no multiple of 16."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("odd")
    base = find_base(TINY_MODEL)
    base.config.intermediate_size = 120
    LlamaForCausalLM(base.config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def test_layers_of_other_sizes_stay_as_they_are_and_are_counted(cli, anywhere, odd_sizes):
    run = cli(*FP8, *using(odd_sizes))
    assert run.code == 0
    (note,) = [note for note in run.record["notes"] if "fp8" in note]
    assert "8 of 14 linear layers" in note
    assert "model.layers.0.mlp.gate_proj and 5 more" in note
    model = load_model(find_base(ModelSettings(path=str(odd_sizes))), Fp8Config(), torch.bfloat16, 0)
    kinds = {name: type(module) for name, module in model.named_modules() if name.endswith("_proj")}
    assert {kind for name, kind in kinds.items() if "mlp" in name} == {torch.nn.Linear}
    assert {kind for name, kind in kinds.items() if "attn" in name} == {Fp8Linear}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lora.modules_to_save=[o_proj]",), "names model.layers.0.self_attn.o_proj, which is quantised"),
        (
            ("quantization.modules_to_not_convert=[_proj]",),
            "has no linear layers",
        ),
        (("quantization.transposed_cpy=true",), "'quantization.transposed_copy'"),
        (("lora._target_=peft.BOFTConfig", "lora=r8"), "BOFTConfig may read the base's weights"),
        (("lora=none",), "a quantised base cannot be fully fine-tuned"),
    ],
)
def test_what_does_not_go_together_is_refused(cli, anywhere, capsys, words, said):
    run = cli(*FP8, *words)
    assert run.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not run.folder.exists()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("recipe", ["sft", "evaluate", "merge", "chat"])
def test_other_machines_are_refused_before_anything_is_looked_for(cli, monkeypatch, capsys, trained, recipe):
    monkeypatch.setattr(support, "unsupported", lambda: "T4 has compute capability 7.5, and e4m3 needs 8.9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    where = ("model.path=owner/not-at-hand", "model.weights=pretrained", "model.architecture=null")
    start = (f"adapter={trained(*TINY)}",) if recipe != "sft" else TINY
    run = cli(*start, *where, f"recipe={recipe}", "quantization=fp8", *(["prompt=hi"] * (recipe == "chat")))
    assert run.code == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "quantization=fp8: T4 has compute capability 7.5, and e4m3 needs 8.9" in err
    assert "allowed here: quantization=nf4, int8 or none" in err
    assert "not-at-hand" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_machine_without_cuda_is_refused(cli, capsys):
    assert cli(*FP8).code == 2
    assert "there is no CUDA device" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="no CUDA device"):
        load_model(find_base(TINY_MODEL), Fp8Config(), torch.bfloat16, 0)


@pytest.mark.parametrize(
    ("name", "capability", "hip", "said"),
    [("A100", (8, 0), None, "A100 has compute capability 8.0"), ("MI300", (9, 4), "6.4", "fnuz")],
)
def test_which_devices_have_no_product_of_e4m3(monkeypatch, name, capability, hip, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert said in str(support.unsupported())
