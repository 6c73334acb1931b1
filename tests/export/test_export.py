"""Exports of a merged model: what is kept answers like the model, and is complete."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import runner.export.gguf.architecture
from helpers.command import LEARNS, TINY, Run
from runner.__main__ import main
from runner.evaluation.logit_kl import compare, read_texts
from runner.export.gguf.kinds import WRITTEN
from runner.export.gguf.tokenizer import obstacles, splitter
from runner.export.gguf.verify import check_tokenizer, read_back
from runner.export.gguf.writer import write_gguf
from runner.models.model import Precision, byte_tokenizer

EXACT = Precision("fp32", torch.float32, None)
MERGED = {"config.yaml", "run.json", "report.html"} | {
    f"model/{name}"
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    )
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
LINEAR = {"rope_type": "linear", "rope_theta": 20000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def trained(trained) -> Path:
    return trained(*LEARNS)


def merge(cli, adapter: Path, *words: str) -> Run:
    return cli("recipe=merge", f"adapter={adapter}", *words, folder="merged")


def random_model(folder: Path, model_type: str, **shape: object) -> Path:
    """A folder with weights large enough that a wrong order of them shows in the logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, "initializer_range": 0.2, **shape})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def written(source: Path, kind: str = "f32") -> tuple[Path, list[str]]:
    file = source / "gguf" / f"model-{kind}.gguf"  # alone, as transformers would read what lies beside it
    file.parent.mkdir()
    config, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    return file, write_gguf(file, source, config, tokenizer, kind, "a model")


def logits(source: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    return read_texts(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), texts, EXACT)


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


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_kind_holds_the_weights_within_its_error(tmp_path, kind):
    source = random_model(tmp_path, "qwen2")  # whose weights keep their order
    file, notes = written(source, kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    expected = AutoModelForCausalLM.from_pretrained(source).get_parameter("model.layers.0.mlp.up_proj.weight")
    stored = tensors["blk.0.ffn_up.weight"]
    assert stored.tensor_type.name == kind.upper()
    found = gguf.dequantize(stored.data, stored.tensor_type)
    error = np.std(found - expected.detach().numpy()) / expected.std().item()
    # rounding to 2^n steps over about four standard deviations: 4 / 2^n / sqrt(12)
    bounds = {"f32": 0.0, "f16": 3e-4, "bf16": 3e-3, "8": 0.008, "5": 0.06, "4": 0.12}
    bound = bounds.get(kind) if kind in bounds else bounds[kind[1]]
    assert bound / 20 <= error <= bound
    mixed = kind[:2] in ("q4", "q5")
    assert tensors["output.weight"].tensor_type.name == ("Q8_0" if mixed else kind.upper())
    assert ("projects to the vocabulary" in str(notes)) == mixed
    assert tensors["blk.0.attn_q.bias"].tensor_type.name == "F32"


@pytest.mark.parametrize(
    ("model_type", "shape", "unread"),
    [
        ("llama", {}, ""),
        ("llama", {"attention_bias": True, "mlp_bias": True}, "biases of attention, biases of the MLP"),
        ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}, "the scaling of the rotary"),
        ("llama", {"rope_parameters": {**LINEAR, "factor": 2.0}}, "the scaling of the rotary"),
        ("llama", {"head_dim": 32}, ""),
        ("mistral", {"sliding_window": None}, ""),
        ("qwen2", {"rope_parameters": {**LINEAR, "rope_type": "default"}}, ""),
        ("qwen3", {"head_dim": 32}, "the size of a head"),
    ],
)
def test_every_architecture_is_read_back_without_loss(tmp_path, model_type, shape, unread):
    source = random_model(tmp_path, model_type, **shape)
    file, _ = written(source)
    texts = [list(range(200)), [7, 3, 250, 9]]
    expected = logits(source, texts)
    found, notes = read_back(file, AutoConfig.from_pretrained(source), texts, EXACT)
    result = compare(expected, found)
    assert unread in str(notes)
    assert bool(notes) == bool(unread)
    assert result.max_difference < 1e-3
    assert result.kl < 1e-7
    assert torch.cat(expected).std() > 0.5


def test_the_frequencies_of_llama3_are_in_the_file(tmp_path):
    source = random_model(tmp_path, "llama", rope_parameters=LLAMA3)
    file, _ = written(source)
    (factors,) = (t.data for t in gguf.GGUFReader(file).tensors if t.name == "rope_freqs.weight")
    assert factors[0] == pytest.approx(1)  # many turns within the old context: as it was
    assert factors[-1] == pytest.approx(8)  # less than one: stretched by the factor
    assert (np.diff(factors.round(3)) >= 0).all()


def test_rows_that_no_block_fits_become_float16(tmp_path):
    source = random_model(tmp_path, "llama", intermediate_size=80)
    file, notes = written(source, "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    assert notes == ["2 of 21 tensors written as F16: its rows cannot be cut into blocks of 32"]


def test_a_file_that_answers_otherwise_is_not_kept(cli, trained, monkeypatch, capsys):
    monkeypatch.setattr(
        runner.export.gguf.architecture, "reorder", lambda config, tensor, values: values * 0.9
    )
    run = merge(cli, trained, "export=gguf", "gguf.kind=f32")
    assert run.code == 1
    assert run.files() == MERGED
    assert "does not answer like the model" in capsys.readouterr().err
    assert run.record["status"] == "failed"


def bpe_tokenizer(split: object) -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges, special tokens and a token of the user's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["12 tens and 345 hundreds don't stand for 6789 thousands " * 3] * 20, trainer
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<s>"
    )
    made.add_tokens(["<think>"])
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    return made


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def splitting(number: str) -> object:
    regex = Regex(WORDS.replace("NUMBER", number))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(regex, "isolated"), byte_level])


PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN])


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (PLAIN, "gpt-2"),
        (DIGITS, "smollm"),
        (splitting(r"\p{N}"), "qwen2"),
        (splitting(r"\p{N}{1,3}"), "llama-bpe"),
    ],
)
def test_a_tokenizer_comes_back_with_the_same_ids(tmp_path, split, name):
    source = random_model(tmp_path, "llama")
    tokenizer = bpe_tokenizer(split)
    tokenizer.save_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert splitter(tokenizer) == name
    assert list(obstacles(tokenizer, 320)) == []
    file, _ = written(source)
    texts = [tokenizer(text)["input_ids"] for text in ("<think>12345 tens</s>", "don't stand for 6789\n")]
    notes = check_tokenizer(file, tokenizer, texts)
    assert not notes or name != "gpt-2"
    facts = {field.name: field.contents() for field in gguf.GGUFReader(file).fields.values()}
    assert facts["tokenizer.ggml.pre"] == name
    types = facts["tokenizer.ggml.token_type"]
    assert (types[0], types[tokenizer.vocab["<think>"]], types[-1]) == (
        3,
        4,
        5,
    )  # control, the user's own, unused

    other = bpe_tokenizer(split)
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(Exception, match="chat_template"):
        check_tokenizer(file, other, texts)


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
