"""Tokens to train of an embedding that the head shares are refused before the weights are read.

Also where the model's modules are known to its own code only: by its ``config.json``.
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from helpers.command import QUIET, TINY
from helpers.tiny_model import using

TOKENS = "lora.trainable_token_indices=[3,4]"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path):
    """The tiny model as one that may bring code of its own."""

    def write(**facts: object) -> tuple[str, ...]:
        folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        config.pop("tie_word_embeddings")
        (folder / "config.json").write_text(json.dumps(config | facts))
        return (*using(folder), "model.trust_remote_code=true")

    return write


@pytest.mark.parametrize("tokens", [TOKENS, "lora.trainable_token_indices={embed_tokens: [3]}"])
def test_a_tied_head_is_known_from_the_config(cli, model, capsys, tokens):
    run = cli(*TINY, *QUIET, *model(tie_word_embeddings=True), tokens)
    assert run.code == 2
    said = capsys.readouterr().err
    assert "nothing was loaded" in said
    assert "lora.trainable_token_indices: an adapter on the output head would not be trained" in said


def test_the_key_is_the_same_where_the_model_is_tried_without_weights(cli, capsys):
    assert cli(*TINY, *QUIET, TOKENS).code == 2
    said = capsys.readouterr().err
    assert "lora.trainable_token_indices: an adapter on the output head would not be trained" in said
    assert "the embedding is tied" in said


def test_a_head_of_its_own_is_no_obstacle(cli, model):
    words = model(tie_word_embeddings=False)
    weights = Path("model/model.safetensors")
    tensors = load_file(weights)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, weights, metadata={"format": "pt"})
    run = cli(*TINY, *QUIET, *words, TOKENS)
    assert run.code == 0
