"""Checkpoints that were published with code of their own: converted they compute what is published."""

import json
from pathlib import Path

import pytest
import torch
from published import (
    CHATGLM,
    QWEN,
    chatglm_state,
    qwen_state,
    save_pickled,
    save_sharded,
    save_single,
    write_chatglm,
    write_qwen,
)
from published_reference import chatglm_logits, qwen_logits
from safetensors.torch import load_file, save_file

from helpers.paths import ROOT
from runner.config.settings import ModelSettings
from runner.core.errors import ConfigError, RunnerError
from runner.models.conversion.published import native_facts
from runner.models.locate import find_model
from runner.models.model import find_base, load_model

IDS = torch.randint(0, 600, (40,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory) -> Path:
    """Of each family a checkpoint, of which tests take copies."""
    folder = tmp_path_factory.mktemp("published")
    write_qwen(folder / "qwen")
    write_chatglm(folder / "chatglm")
    return folder


@pytest.fixture
def checkpoint(vocabularies, tmp_path):
    """Make a folder by its family's name, with changes to its config and its tensors in files of a kind."""

    def make(family: str, save=None, name: str = "", **changes) -> Path:
        target = tmp_path / (name or family)
        writer = {"qwen": write_qwen, "chatglm": write_chatglm}[family]
        return writer(target, save, vocabulary=vocabularies / family, **changes)

    return make


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """What the runner's model of a folder computes, in float64 but for its norms and angles."""
    model = load_model(find_base(ModelSettings(path=str(folder))), None, torch.float64, seed=0)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(
    ("family", "save", "changes"),
    [
        ("qwen", save_sharded, {}),
        ("qwen", save_single, {"rotary_emb_base": 1000000}),  # as Qwen-72B has it
        ("chatglm", save_pickled, {}),
        ("chatglm", save_sharded, {"rope_ratio": 50}),  # as ChatGLM3-6B-32k has it
    ],
)
def test_a_converted_model_computes_what_its_architecture_says(checkpoint, family, save, changes):
    folder = checkpoint(family, save, **changes)
    state, reference = {
        "qwen": (qwen_state, qwen_logits),
        "chatglm": (chatglm_state, chatglm_logits),
    }[family]
    expected = reference(state(), IDS, (QWEN if family == "qwen" else CHATGLM) | changes)
    assert expected.std() > 1
    torch.testing.assert_close(logits(folder, IDS), expected, atol=2e-5, rtol=0)


def test_qwen_scales_positions_and_attention_only_beyond_those_it_was_trained_with(checkpoint):
    config = QWEN | {"seq_length": 32}
    folder = checkpoint("qwen", seq_length=32)
    base = find_base(ModelSettings(path=str(folder)))
    assert base.config.max_position_embeddings == 32  # longer rows are refused, as for any model
    state, found = qwen_state(), logits(folder, IDS)
    up_to = qwen_logits(state, IDS[:32], config)
    torch.testing.assert_close(found[:32], up_to, atol=2e-5, rtol=0)
    assert (found - qwen_logits(state, IDS, config)).abs().max() > 0.1


PUBLISHED = {
    "qwen-7b-chat": QWEN
    | {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"kv_channels": 128, "vocab_size": 151936, "seq_length": 8192},
    "qwen-14b-chat": QWEN
    | {"hidden_size": 5120, "intermediate_size": 27392, "num_hidden_layers": 40, "num_attention_heads": 40}
    | {"kv_channels": 128, "vocab_size": 152064, "seq_length": 2048},
    "chatglm3-6b": CHATGLM
    | {"hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28, "num_attention_heads": 32}
    | {"kv_channels": 128, "padded_vocab_size": 65024, "seq_length": 8192},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_architecture_in_this_repository(name):
    file = ROOT / "runner" / "models" / "architectures" / f"{name}.json"
    assert native_facts(PUBLISHED[name], file).items() <= json.loads(file.read_text()).items()


def test_a_conversion_is_kept_and_made_anew_for_other_files(checkpoint, cache):
    folder = checkpoint("qwen")
    first = find_model(str(folder))
    assert find_model(str(folder)) == first
    assert first.converted
    assert first.folder.parent == cache / "models"
    assert not (first.folder / "config.json").read_text().count("auto_map")
    kept = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    (first.folder / "tokenizer.json").write_text("{}")
    again = find_model(str(folder))
    assert "was damaged, and has been converted anew" in again.notes[0]
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == kept
    file = next(folder.glob("*.safetensors"))
    save_file({name: 2 * values for name, values in load_file(file).items()}, file)
    assert find_model(str(folder)).folder != first.folder


def test_weights_keep_their_type(checkpoint):
    def save(state, folder):
        save_sharded({name: values.half() for name, values in state.items()}, folder)

    base = find_base(ModelSettings(path=str(checkpoint("chatglm", save))))
    assert base.folder is not None
    assert base.config.dtype == torch.float16
    stored = {
        values.dtype for file in base.folder.glob("*.safetensors") for values in load_file(file).values()
    }
    assert stored == {torch.float16}


def refusal(folder: Path, cache: Path) -> str:
    """What a refused checkpoint is told; nothing may be left of it in the cache."""
    with pytest.raises(ConfigError) as caught:
        find_model(str(folder))
    assert not [entry for entry in cache.glob("models/*") if entry.is_dir()]
    return str(caught.value)


NEWER = "newer model"


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised (gptq)"),
        ("qwen", {"visual": {"layers": 48}}, "has a tower (visual)"),
        ("qwen", {"n_embd": 64, "hidden_size": None}, "is of the first release"),
        ("qwen", {"no_bias": False}, "no_bias is False; only True can be converted"),
        ("qwen", {"tie_word_embeddings": True}, "tie_word_embeddings is True; only False"),
        ("qwen", {"rotary_pct": 0.5}, "rotary_pct is 0.5; only 1.0"),
        ("qwen", {"kv_channels": 8}, "kv_channels is 8; only 16"),
        ("qwen", {"hidden_size": "64"}, "hidden_size is '64', expected a whole number above 0"),
        ("qwen", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan, expected a number"),
        ("qwen", {"num_attention_heads": 0}, "num_attention_heads is 0, expected"),
        ("chatglm", {"quantization_bit": 4}, "is quantised to 4 bits"),
        ("chatglm", {"position_encoding_2d": True}, "is ChatGLM-6B of the first generation"),
        ("chatglm", {"pre_seq_len": 128}, "has a trained prefix"),
        ("chatglm", {"multi_query_attention": False}, "multi_query_attention is False; only True"),
        ("chatglm", {"rmsnorm": None}, "rmsnorm is None; only True"),
        ("chatglm", {"rope_ratio": -1}, "rope_ratio is -1, expected a number above 0"),
    ],
)
def test_a_variant_that_is_another_model_is_refused_with_a_newer_one(
    checkpoint, cache, family, changes, said
):
    message = refusal(checkpoint(family, **changes), cache)
    assert said in message
    assert NEWER in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("lm_head.weight"), "lacks the tensor lm_head.weight"),
        (
            lambda s: [s.pop(name) for name in list(s) if ".attn." in name],
            "lacks the tensor transformer.h.0.attn.c_attn.bias and 5 more",
        ),
        (lambda s: s.update({"transformer.h.2.ln_1.weight": torch.ones(64)}), "without a place"),
        (
            lambda s: s.update({"transformer.h.0.attn.c_attn.weight": torch.ones(128, 64)}),
            "has the shape [128, 64], its config describes [192, 64]",
        ),
        (
            lambda s: s.update({"transformer.h.1.mlp.w1.weight": torch.ones(96, 64, dtype=torch.int8)}),
            "is of torch.int8: a quantised checkpoint cannot be converted",
        ),
        (lambda s: s.update({"a.inv_freq": torch.ones(8)}), "is not the table of rotary frequencies"),
    ],
)
def test_a_tensor_that_is_not_what_the_config_says_is_refused(checkpoint, cache, change, said):
    def save(state, folder):
        change(state)
        save_sharded(state, folder)

    assert said in refusal(checkpoint("qwen", save), cache)


def test_a_tensor_in_two_files_is_refused(checkpoint, cache):
    def save(state, folder):
        save_pickled(state, folder)
        file = folder / "pytorch_model-00002-of-00002.bin"
        both = torch.load(file) | {"lm_head.weight": state["lm_head.weight"]}
        torch.save(both | {"transformer.wte.weight": state["transformer.wte.weight"]}, file)

    assert "which is in pytorch_model-00001-of-00002.bin too" in refusal(checkpoint("qwen", save), cache)


def cut(name: str, kept: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def first_lines(file: Path, kept: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:kept]))


def glm4(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLM4Tokenizer"}')


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:57d9\nsize 1018370\n"


@pytest.mark.parametrize(
    ("family", "damage", "said"),
    [
        (
            "qwen",
            cut("model-00001-of-00002.safetensors", 5000),
            "00002.safetensors: is damaged",
        ),
        ("chatglm", cut("pytorch_model-00002-of-00002.bin", 5000), "00002-of-00002.bin: is damaged"),
        ("chatglm", cut("pytorch_model-00002-of-00002.bin", 0), "00002-of-00002.bin: is damaged"),
        ("qwen", lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "no usable model-00002-of"),
        ("qwen", lambda f: (f / "qwen.tiktoken").unlink(), "qwen.tiktoken: cannot be read: No such file"),
        (
            "qwen",
            lambda f: (f / "qwen.tiktoken").write_bytes(POINTER),
            "qwen.tiktoken:1: expected a token in",
        ),
        ("qwen", lambda f: first_lines(f / "qwen.tiktoken", 100), "has no token for 156 of the 256 bytes"),
        ("qwen", lambda f: (f / "generation_config.json").write_text("["), "is not readable as JSON"),
        ("chatglm", lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model: cannot be read"),
        ("chatglm", lambda f: (f / "tokenizer.model").write_bytes(POINTER), "is no SentencePiece model"),
        ("chatglm", cut("tokenizer.model", 3000), "tokenizer.model: is no SentencePiece model: ends within"),
        ("chatglm", lambda f: (f / "tokenization_chatglm.py").unlink(), "this is a ChatGLM2"),
        ("chatglm", glm4, "is a GLM-4 with code of its own"),
    ],
)
def test_a_file_that_is_damaged_or_missing_is_refused(checkpoint, cache, family, damage, said):
    folder = checkpoint(family)
    damage(folder)
    assert said in refusal(folder, cache)


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_pickled_weights_is_not_run(checkpoint, capsys):
    folder = checkpoint("chatglm", lambda _, folder: torch.save(Code(), folder / "pytorch_model.bin"))
    with pytest.raises(RunnerError, match="may be code; it was not run"):
        find_model(str(folder))
    assert "run" not in capsys.readouterr().out


def test_a_disk_without_room_is_said_before_a_weight_is_read(checkpoint, cache, monkeypatch):
    free = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    message = refusal(checkpoint("qwen"), cache)
    assert "is converted once, for which 0.0 GiB are needed" in message
    assert f"{cache / 'models'} has 0.0 GiB left; RUNNER_CACHE=FOLDER" in message
