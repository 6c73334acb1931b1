"""Vocabularies that were published for tokenizers of their own give the same tokens when converted."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from published import TEXT, train_ranks, write_chatglm, write_pieces, write_qwen

from runner.core.errors import ConfigError
from runner.models.conversion.byte_pairs import merges_of
from runner.models.conversion.sentencepiece_file import sentencepiece_tokenizer
from runner.models.conversion.tiktoken_file import read_ranks
from runner.models.locate import find_model

# Published with the vocabulary, in tokenization_qwen.py.
WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
ROLES = {"[gMASK]": 421, "<sop>": 423, "<|system|>": 425, "<|user|>": 426, "<|assistant|>": 427}


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_model(str(folder)).folder)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = write_qwen(tmp_path_factory.mktemp("qwen") / "qwen")
    return tokenizer_of(folder), read_ranks(folder / "qwen.tiktoken")


@pytest.fixture(scope="module")
def chatglm(tmp_path_factory):
    folder = write_chatglm(tmp_path_factory.mktemp("chatglm") / "chatglm")
    return tokenizer_of(folder), sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


def byte_pairs(ranks: dict[bytes, int], text: str) -> list[int]:
    """What tiktoken gives: in each word the neighbours that make the token of the lowest rank are merged."""
    found = []
    for word in WORDS.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            made = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
            if min(made) == len(ranks):
                break
            at = made.index(min(made))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [ranks[part] for part in parts]
    return found


ODD = st.text(alphabet=st.sampled_from("aeinoprst  \n\t'S.,0你好🙂é<|im_end>_-#"), max_size=60)


@settings(max_examples=300, deadline=None)
@given(text=ODD)
def test_qwen_gives_the_tokens_of_its_ranks(qwen, text):
    tokenizer, ranks = qwen
    assume(not any(token in text for token in tokenizer.get_added_vocab()))
    ids = tokenizer(text)["input_ids"]
    assert ids == byte_pairs(ranks, text)
    assert tokenizer.decode(ids) == text


def test_qwen_reads_a_whole_document_and_its_special_tokens(qwen):
    tokenizer, ranks = qwen
    assert tokenizer(TEXT)["input_ids"] == byte_pairs(ranks, TEXT)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    count = len(ranks)
    assert tokenizer.convert_tokens_to_ids(names) == [count, count + 1, count + 2, count + 3, count + 207]
    assert tokenizer("<|im_end|>\n")["input_ids"] == [count + 2, 10]
    # a letter with its accent apart is one letter first (NFC)
    assert tokenizer("e\u0301")["input_ids"] == byte_pairs(ranks, "é")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_a_base_model_of_qwen_ends_with_the_end_of_its_text(tmp_path):
    folder = write_qwen(tmp_path / "base")
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "raw"}))
    assert tokenizer_of(folder).eos_token == "<|endoftext|>"


def test_the_chat_of_qwen_has_a_system_prompt(qwen):
    tokenizer, _ = qwen
    question = {"role": "user", "content": "Hi"}
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for messages, system in (
        ([question], "You are a helpful assistant."),
        ([{"role": "system", "content": "Be brief."}, question], "Be brief."),
    ):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == f"<|im_start|>system\n{system}<|im_end|>\n{asked}"


@settings(max_examples=300, deadline=None)
@given(text=ODD)
def test_chatglm_gives_the_tokens_of_its_pieces(chatglm, text):
    tokenizer, pieces = chatglm
    assume(not any(token in text for token in tokenizer.get_added_vocab()))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == pieces.encode(text)
    assert tokenizer.decode(ids) == pieces.decode(ids) == text


def test_the_chat_of_chatglm_has_the_tokens_that_its_own_code_gave(chatglm):
    tokenizer, pieces = chatglm
    turns = [
        *(("system", "Be brief."), ("user", "a sop, philosophy\n 你好")),
        *(("assistant", " eop"), ("user", "x")),
    ]
    prefix = [ROLES["[gMASK]"], ROLES["<sop>"]]
    expected = list(prefix)
    for role, content in turns:  # role, line of metadata, words: each read by itself
        expected += [ROLES[f"<|{role}|>"], *pieces.encode("\n"), *pieces.encode(content)]
    messages = [{"role": role, "content": content} for role, content in turns]
    given_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert given_ids == [*expected, ROLES["<|assistant|>"]]
    assert tokenizer("x")["input_ids"] == [*prefix, *pieces.encode("x")]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"byte_fallback": False, "unk_surface": "?"},
    ],
    ids=["nmt_nfkc", "nfkc", "no prefix", "no bytes"],
)
def test_the_normalisation_of_a_model_is_its_own(tmp_path, options):
    file = tmp_path / "tokenizer.model"
    write_pieces(file, vocab_size=400 if options.get("byte_fallback", True) else 200, **options)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = sentencepiece_tokenizer(file, ["<|user|>"], ["<|user|>"], **special)
    pieces = sentencepiece.SentencePieceProcessor(str(file))
    for text in ("Ｈｅｌｌｏ　ﬁ  two  spaces ", "  lead", "\ttab\nline", "你好, 世界 🙂", TEXT):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "unigram"}, "is a SentencePiece model of kind 1, expected 2 (byte pairs)"),
        ({"user_defined_symbols": ["runner", " the "]}, "when converted"),
    ],
    ids=["unigram", "user-defined"],
)
def test_a_model_whose_tokens_would_be_others_is_refused(tmp_path, options, said):
    file = tmp_path / "tokenizer.model"
    write_pieces(file, **options)
    with pytest.raises(ConfigError) as caught:
        sentencepiece_tokenizer(file, [], [], bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert said in str(caught.value)


def test_every_way_to_make_a_token_is_a_merge():
    ranks = train_ranks("aaaa aaab abab", 3)
    letters = {token.decode("latin-1"): float(rank) for token, rank in ranks.items()}
    merges = merges_of(letters)
    made = ["".join(pair) for pair in merges]
    assert [letters[token] for token in made] == sorted(letters[token] for token in made)
    assert (
        len(merges)
        == len(set(merges))
        == sum(
            token[:cut] in letters and token[cut:] in letters
            for token in letters
            for cut in range(1, len(token))
        )
    )
