"""Exports of a merged model: what is kept answers like the model, and is complete."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import gguf
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import runner.export.gguf.architecture
from helpers.command import LEARNS, TINY, Run
from helpers.merges import MODEL, ONE_FILE, RECORD
from helpers.tiny_model import random_model
from runner.__main__ import main
from runner.models.model import byte_tokenizer

pytestmark = pytest.mark.slow

MERGED = RECORD | MODEL | ONE_FILE


@pytest.fixture(scope="session")
def trained(trained) -> Path:
    return trained(*LEARNS)


def merge(cli, adapter: Path, *words: str) -> Run:
    return cli("recipe=merge", f"adapter={adapter}", *words, folder="merged")


@pytest.mark.report
def test_the_file_of_a_merged_model_is_read_back_and_measured(cli, trained):
    run = merge(cli, trained, "export=gguf")
    assert run.code == 0
    assert run.files() == MERGED | {"model-Q8_0.gguf"}
    file = run.folder / "model-Q8_0.gguf"
    metrics = run.record["metrics"]
    assert 0 < metrics["gguf_kl"] < 0.01
    assert metrics["gguf_max_logit_difference"] > 0
    assert metrics["gguf_greedy_agreement"] > 0.9
    assert metrics["gguf_bytes"] == file.stat().st_size
    assert run.record["gguf"]["kind"] == "q8_0"
    assert "tensors written as" not in str(run.record["notes"])  # the whole file is of this kind
    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert facts["general.architecture"] == "llama"
    assert facts["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert (facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]) == (4, 2)
    assert facts["llama.attention.key_length"] == facts["llama.rope.dimension_count"] == 16
    assert facts["tokenizer.ggml.eos_token_id"] == 257
    assert facts["tokenizer.chat_template"] == byte_tokenizer().chat_template
    assert len(facts["tokenizer.ggml.tokens"]) == 512  # filled up to the embeddings
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"
    assert "output.weight" not in types  # tied


def test_a_file_that_answers_otherwise_is_not_kept(cli, trained, monkeypatch, capsys):
    monkeypatch.setattr(
        runner.export.gguf.architecture, "reorder", lambda config, tensor, values: values * 0.9
    )
    run = merge(cli, trained, "export=gguf", "gguf.kind=f32")
    assert run.code == 1
    assert run.files() == MERGED
    assert "does not answer like the model" in capsys.readouterr().err
    assert run.record["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gguf.kind=[q8_0,q8_1]"], "gguf.kind=q8_1"),
        (["gguf.kind=[]"], "names no kind"),
        (["gguf.kind=q8_1"], "did you mean 'q8_0'?"),
        (["gguf.kind=q4_k_m"], "gguf.llama_cpp=FOLDER"),
        (["gguf.kind=q4_k_m", "gguf.llama_cpp=nowhere"], "holds no convert_hf_to_gguf.py"),
        (["gguf.kind=q4_k_m", "gguf.llama_cpp=unbuilt"], "holds no llama-quantize"),
    ],
)
def test_a_kind_that_cannot_be_written_is_refused_before_the_merge(cli, trained, capsys, words, said):
    Path("unbuilt").mkdir()
    Path("unbuilt/convert_hf_to_gguf.py").touch()
    run = merge(cli, trained, "export=gguf", *words)
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("model_type", "shape", "said"),
    [
        ("gemma", {}, "no gemma model can be written, only llama, mistral, qwen2, qwen3"),
        ("qwen3", {"attention_bias": True}, "its attention has biases"),
        ("llama", {"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ("mistral", {"sliding_window": 64}, "sliding window"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "its rotary embedding is 'yarn'",
        ),
    ],
)
def test_a_model_that_cannot_be_written_is_refused_before_the_merge(
    cli, tmp_path, capsys, model_type, shape, said
):
    base = random_model(tmp_path / "base", model_type, **shape)
    start = cli(*LEARNS, "model.weights=pretrained", f"model.path={base}", folder="start")
    assert start.code == 0
    run = merge(cli, start.folder, "export=gguf")
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not run.folder.exists()


def test_a_model_with_classes_is_not_exported(cli, capsys):
    Path("rows.jsonl").write_text("".join(f'{{"text": "row {n}", "label": "{n % 2}"}}\n' for n in range(12)))
    data = ("data.path=rows.jsonl", "data.eval_path=null", "data.eval_split=0.2")
    start = cli("recipe=classify", *TINY, *data, folder="start")
    assert start.code == 0
    for export in ("gguf", "int4"):
        assert merge(cli, start.folder, f"export={export}").code == 2
        assert "only models that write text are exported" in capsys.readouterr().err


@pytest.fixture(scope="session")
def float32_file(trained, tmp_path_factory) -> Path:
    """What a converter makes of the merged model; the import of its libraries takes seconds."""
    folder = tmp_path_factory.mktemp("float32") / "merged"
    words = ("recipe=merge", f"adapter={trained}", "export=gguf", "gguf.kind=f32")
    assert main([*words, f"output_dir={folder}"]) == 0
    return folder / "model-F32.gguf"


def llama_cpp(folder: Path, converted: Path, quantize: str) -> Path:
    """A stand-in for a checkout: its converter gives a file there is, its quantiser runs a line of Python."""
    (folder / "build/bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(
        "import json, pathlib, shutil, sys\n"
        "source, _, outfile, _, outtype = sys.argv[1:]\n"
        "pathlib.Path('converted.json').write_text(json.dumps(sys.argv[1:]))\n"
        "assert (pathlib.Path(source) / 'model.safetensors').is_file()\n"
        f"shutil.copy({str(converted)!r}, outfile)\n"
    )
    program = folder / "build/bin/llama-quantize"
    program.write_text(f"#!{sys.executable}\nimport pathlib, shutil, sys\n{quantize}\n")
    os.chmod(program, 0o755)
    return folder


def test_other_kinds_are_made_by_the_checkout_that_the_user_names(cli, trained, float32_file, tmp_path):
    checkout = llama_cpp(
        tmp_path / "llama cpp",
        float32_file,
        "shutil.copy(*sys.argv[1:3]); pathlib.Path('quantised.txt').write_text(sys.argv[3])",
    )
    run = merge(cli, trained, "export=gguf", "gguf.kind=Q4_K_M", f"gguf.llama_cpp='{checkout}'")
    assert run.code == 0
    assert run.files() == MERGED | {"model-Q4_K_M.gguf"}
    source, *_, outtype = json.loads((checkout / "converted.json").read_text())
    assert (source, outtype) == (str(run.folder / "model"), "auto")
    assert (checkout / "quantised.txt").read_text() == "Q4_K_M"
    assert run.record["gguf"]["written_by"] == "llama.cpp"
    assert run.record["metrics"]["gguf_kl"] < 1e-6


def test_what_a_failing_checkout_said_is_told(cli, trained, float32_file, tmp_path, capsys):
    checkout = llama_cpp(tmp_path / "llama.cpp", float32_file, "sys.exit('this model needs an imatrix')")
    run = merge(cli, trained, "export=gguf", "gguf.kind=iq2_xxs", f"gguf.llama_cpp={checkout}")
    assert run.code == 1
    assert "this model needs an imatrix" in capsys.readouterr().err
    assert run.files() == MERGED


def test_a_4_bit_folder_loads_as_it_is(cli, trained):
    run = merge(cli, trained, "export=int4")
    assert run.code == 0
    names = {name.replace("model/", "model-nf4/") for name in MERGED if name.startswith("model/")}
    assert run.files() == MERGED | names - {"model-nf4/README.md"}
    metrics = run.record["metrics"]
    facts = run.record["int4"]
    assert 0 < metrics["int4_kl"] < facts["allowed_kl"] < 0.03
    assert 0 < facts["base_kl"] < 0.01
    assert metrics["int4_bytes"] < (run.folder / "model/model.safetensors").stat().st_size

    import bitsandbytes as bnb

    model = AutoModelForCausalLM.from_pretrained(run.folder / "model-nf4")
    whole = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    layer, expected = (m.model.layers[0].mlp.up_proj for m in (model, whole))
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert layer.quant_state.nested
    assert layer.weight.shape[-1] == 1  # bytes as they are stored everywhere, not repacked for this CPU
    found = bnb.functional.dequantize_4bit(layer.weight, layer.quant_state).float()
    assert 0 < (found - expected.weight).std() / expected.weight.std() < 0.15
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model-nf4")
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_several_kinds_are_written_at_once(cli, trained):
    run = merge(cli, trained, "export=gguf", "gguf.kind=[f16,Q8_0]")
    assert run.code == 0
    assert run.files() == MERGED | {"model-F16.gguf", "model-Q8_0.gguf"}
    records = run.record["gguf"]
    assert [(each["kind"], each["file"]) for each in records] == [
        ("f16", "model-F16.gguf"),
        ("q8_0", "model-Q8_0.gguf"),
    ]
    assert run.record["metrics"]["gguf_kl"] == max(each["proof"]["kl"] for each in records)
    card = (run.folder / "model/README.md").read_text(encoding="utf-8")
    assert "| GGUF | model-F16.gguf, model-Q8_0.gguf |" in card
