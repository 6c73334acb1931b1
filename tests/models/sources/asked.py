"""What tests of finding a model ask."""

import pytest

from runner.core.errors import ConfigError
from runner.models.locate import find_model


def refusal(path, revision=None):
    with pytest.raises(ConfigError) as caught:
        find_model(path, revision)
    return str(caught.value)


def assert_same_model(folder, file):
    """The converted folder computes what transformers' own loading of the GGUF file computes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("abc 12, déf\n").input_ids])
    assert tokenizer.decode(ids[0]) == "abc 12, déf\n"
    assert ids.tolist() == [
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)("abc 12, déf\n").input_ids
    ]
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, direct(ids).logits)
    names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert names == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert converted.config.eos_token_id == converted.generation_config.eos_token_id
    assert converted.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template


def put_by_hand(cache, name, data):
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / name).write_bytes(data)
