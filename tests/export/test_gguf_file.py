"""A GGUF file holds the weights, the facts and the tokenizer of the model that it was written of."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from helpers.tiny_model import random_model
from runner.evaluation.logit_kl import compare, read_texts
from runner.export.gguf.kinds import WRITTEN
from runner.export.gguf.tokenizer import obstacles, splitter
from runner.export.gguf.verify import check_tokenizer, read_back
from runner.export.gguf.writer import write_gguf
from runner.models.model import Precision

EXACT = Precision("fp32", torch.float32, None)

LINEAR = {"rope_type": "linear", "rope_theta": 20000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def written(source: Path, kind: str = "f32") -> tuple[Path, list[str]]:
    file = source / "gguf" / f"model-{kind}.gguf"  # alone, as transformers would read what lies beside it
    file.parent.mkdir()
    config, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    return file, write_gguf(file, source, config, tokenizer, kind, "a model")


def logits(source: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    return read_texts(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), texts, EXACT)


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(3)
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
