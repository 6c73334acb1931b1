"""The experiments of Qwen-7B-Chat and ChatGLM3-6B, on tiny checkpoints of the kind that those have."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from published import write_chatglm, write_qwen
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.command import Run
from runner.models.locate import find_model

FEW = (
    "model.architecture=null",
    "data.path=rows.jsonl",
    "data.eval_path=held_out.jsonl",
    "trainer.max_steps=2",
    "trainer.max_length=128",
    "trainer.warmup_steps=0",
    "trainer.eval_steps=1",
    "trainer.save_steps=1",
    "trainer.learning_rate=2e-2",
    "generation.max_new_tokens=4",
    "generation.samples=1",
)
PLAIN = ("quantization=none", "trainer.optim=adamw_torch", "trainer.precision=fp32")
WRITERS = {"qwen-7b-chat": write_qwen, "chatglm3-6b": write_chatglm}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Write the tiny checkpoint of a model, and rows."""
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}."}]}
        for n in range(24)
    ]
    for name, part in (("rows", rows[:20]), ("held_out", rows[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return lambda name: WRITERS[name](tmp_path / name)


def loaded(run: Run, folder: Path) -> torch.Tensor:
    """Logits of the base with the run's adapter, by plain transformers and PEFT."""
    base = AutoModelForCausalLM.from_pretrained(find_model(str(folder)).folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.folder / "adapter")
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


@pytest.mark.parametrize("name", WRITERS)
def test_the_experiment_trains_and_merges(cli, published, name):
    folder = published(name)
    run = cli(f"experiment={name}-qlora", f"model.path={folder}", *FEW, *PLAIN)
    assert run.code == 0
    model = run.record["model"]
    assert (model["converted"], model["trust_remote_code"], model["path"]) == (True, False, str(folder))
    adapted = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert adapted["base_model_name_or_path"] == str(folder)
    layers = {key.rpartition(".")[2] for key in adapted["target_modules"]}
    mlp = {"gate_up_proj"} if name == "chatglm3-6b" else {"gate_proj", "up_proj"}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj", *mlp}
    card = (run.folder / "adapter" / "README.md").read_text()
    assert f'base = find_model("{folder}").folder' in card
    merged = cli("recipe=merge", "adapter=run", folder="merged")
    assert merged.code == 0
    alone = AutoModelForCausalLM.from_pretrained(merged.folder / "model", dtype=torch.float32)
    with torch.no_grad():
        found = alone(torch.arange(5, 45)[None]).logits
    torch.testing.assert_close(found, loaded(run, folder), atol=1e-3, rtol=0)
    asked = AutoTokenizer.from_pretrained(merged.folder / "model").apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert asked.endswith("<|assistant|>" if name == "chatglm3-6b" else "<|im_start|>assistant\n")


@pytest.mark.slow
def test_an_export_is_written_or_refused_by_name(cli, published, capsys):
    for name, said in (("qwen-7b-chat", ""), ("chatglm3-6b", "no glm model can be written")):
        words = (f"experiment={name}-qlora", f"model.path={published(name)}", *FEW, *PLAIN)
        assert cli(*words, folder=f"{name}-run").code == 0
        run = cli(
            "recipe=merge", f"adapter={name}-run", "export=gguf", "gguf.kind=f16", folder=f"{name}-gguf"
        )
        assert run.code == (2 if said else 0)
        assert said in capsys.readouterr().err
        assert (run.folder / "model-F16.gguf").is_file() is not bool(said)


@pytest.mark.parametrize("name", WRITERS)
def test_a_plan_reads_the_published_config_and_converts_nothing(cli, published, tmp_path, name):
    folder = published(name)
    run = cli("recipe=plan", f"experiment={name}-qlora", f"model.path={folder}", *FEW[:3])
    assert run.code == 0
    assert not (tmp_path / "cache" / "models").exists()
    plan = json.loads((run.folder / "plan.json").read_text())
    assert (plan["model"], plan["architecture"]) == (str(folder), "glm" if "glm" in name else "qwen2")
    base = AutoModelForCausalLM.from_pretrained(find_model(str(folder)).folder)
    assert plan["parameters"] == sum(parameter.numel() for parameter in base.parameters())


@pytest.mark.parametrize("recipe", ["plan", "sft"])
def test_published_names_of_layers_are_answered_with_those_they_became(cli, published, capsys, recipe):
    for name, word, said in (
        ("qwen-7b-chat", "[c_attn,attn.c_proj,w1,w2]", "attn.c_proj is o_proj here; w1 is up_proj here"),
        ("chatglm3-6b", "[query_key_value,dense]", "query_key_value is q_proj, k_proj, v_proj here"),
    ):
        words = (f"experiment={name}-qlora", f"model.path={published(name)}", *FEW)
        run = cli(f"recipe={recipe}", *words, f"lora.target_modules={word}")
        assert run.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_the_experiment_runs_over_four_bits(cli, published, name):
    run = cli(f"experiment={name}-qlora", f"model.path={published(name)}", *FEW)
    assert run.code == 0
    assert run.record["metrics"]["eval_loss"] > 0
