"""What tests of merges share."""

import pytest
import torch

from helpers.tiny_model import tiny_base
from runner.models.model import byte_tokenizer


@pytest.fixture
def local_base(tmp_path):
    """A model folder of bfloat16 weights in two files, its embeddings tied."""
    model = tiny_base().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="150KB")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    return tmp_path / "base"
