"""A model's folder that is damaged, not whole, or would load code is refused before its weights are read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.command import QUIET, TINY
from helpers.tiny_model import using
from runner.config.settings import ModelSettings
from runner.core.errors import ConfigError
from runner.models.model import check_weights, find_base, load_model

LAYER = "model.layers.1.mlp.down_proj.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Change = Callable[[Path], object]


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def write(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return write


def values(file: str, **given: object) -> Change:
    def write(folder: Path) -> None:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(found | given), encoding="utf-8")

    return write


def text(file: str, content: str) -> Change:
    return lambda folder: (folder / file).write_text(content, encoding="utf-8")


def cut(file: str, share: float) -> Change:
    def write(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * share)])

    return write


def sharded(then: Change) -> Change:
    """As transformers writes a large model: in several files, with their index."""

    def write(folder: Path) -> None:
        model = load_model(find_base(ModelSettings(path=str(folder))), None, torch.float32, 0)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder, max_shard_size="100KB")
        then(folder)

    return write


def elsewhere(folder: Path) -> None:
    """The index looks for a tensor in a file that does not have it."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    files = index["weight_map"]
    files[LAYER] = next(file for file in files.values() if file != files[LAYER])
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def more_tokens(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    found["model"]["vocab"]["zz"] = 900
    (folder / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")


def loaded(folder: Path) -> list[str]:
    """All that happens before and while weights are read; the warnings."""
    base = find_base(ModelSettings(path=str(folder)))
    notes = [*base.notes, *check_weights(base)]
    load_model(base, None, torch.float32, 0)
    return notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tensors(lambda held: {k: v for k, v in held.items() if k != LAYER}), f"lacks the tensor {LAYER}"),
        (tensors(lambda held: held | {LAYER: torch.zeros(4, 4)}), f"{LAYER} has the shape [4, 4]"),
        (values("config.json", num_hidden_layers=3), "lacks the tensor model.layers.2"),
        (values("config.json", hidden_size=32), "has the shape"),
        (cut(WEIGHTS, 0.5), f"{WEIGHTS}: is damaged"),
        (cut(WEIGHTS, 0.0001), f"{WEIGHTS}: is damaged"),
        (cut(WEIGHTS, 0), f"{WEIGHTS}: is damaged"),
        (sharded(elsewhere), f"{LAYER} in model-"),
        (sharded(lambda folder: sorted(folder.glob("model-*"))[1].unlink()), "no usable model-00002"),
        (sharded(text(INDEX, "{")), "no usable model.safetensors.index.json"),
        (text("config.json", '{"model_type": "lla'), "config.json: is not readable as JSON"),
        (text("config.json", "[1]"), "config.json: is not an object of JSON"),
        (text("config.json", ""), "config.json: is empty"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0{"), "is not readable as JSON"),
        (values("config.json", num_attention_heads=0), "its config.json cannot be loaded"),
        (text("generation_config.json", "{oh"), "generation_config.json: is not readable as JSON"),
        (text("generation_config.json", '{"eos_token_id": "x"}'), "eos_token_id is 'x'"),
        (text("tokenizer.json", '{"a":'), "tokenizer.json: is not readable as JSON"),
        (text("tokenizer.json", ""), "tokenizer.json: is empty"),
        (text("tokenizer.json", "{}"), "its tokenizer cannot be loaded"),
        (text("tokenizer_config.json", "[]"), "tokenizer_config.json: is not an object of JSON"),
        (lambda folder: os.mkfifo(folder / "more.safetensors"), "more.safetensors: is a named pipe"),
        (lambda folder: os.mkfifo(folder / "merges.txt"), "merges.txt: is a named pipe, not a file"),
        (lambda folder: (folder / "old.bin").mkdir(), "old.bin: is a folder, not a file"),
        (more_tokens, "1 tokens beyond them, 'zz' (900) first"),
        (values("config.json", vocab_size=200), "the embedding has 200 rows"),
        (values("config.json", attn_implementation="theirs/kernel"), "compiled code"),
        (values("config.json", _attn_implementation="theirs/kernel@main:run"), "compiled code"),
        (values("config.json", text_config={"attn_implementation": {"": "theirs/kernel"}}), "compiled code"),
        (values("config.json", experts_implementation="theirs/kernel"), "compiled code"),
        (values("config.json", kernel_config={"RMSNorm": "theirs/norm:Norm"}), "compiled code"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tiny_model, tmp_path, change, said):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change(folder)
    with pytest.raises(ConfigError) as refused:
        check_weights(find_base(ModelSettings(path=str(folder))))  # before weights are loaded
    assert said in str(refused.value)


def test_a_whole_model_in_shards_is_loaded(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    sharded(lambda _: None)(folder)
    assert loaded(folder) == []


def test_tensors_without_a_place_are_said(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors(lambda held: held | {"model.layers.7.mlp.weight": torch.zeros(3)})(folder)
    (note,) = loaded(folder)
    assert "model.layers.7.mlp.weight" in note


def test_a_kernel_is_loaded_only_for_who_trusts_the_model(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    values("config.json", attn_implementation="theirs/kernel")(folder)
    assert find_base(ModelSettings(path=str(folder), trust_remote_code=True)).folder == folder


@pytest.mark.parametrize(
    ("number", "dtype"), [(float("nan"), torch.float32), (float("inf"), torch.float32), (1e6, torch.float16)]
)
def test_weights_that_are_no_numbers_are_refused(tiny_model, tmp_path, number, dtype):
    """The last one is a number in the file, and beyond what float16 can hold."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))

    def poison(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        held[LAYER][0, 0] = number
        return held

    tensors(poison)(folder)
    with pytest.raises(ConfigError, match=f"NaN or infinity.* {LAYER}"):
        load_model(find_base(ModelSettings(path=str(folder))), None, dtype, 0)


def test_a_run_on_a_base_with_a_gap_leaves_nothing(cli, tiny_model, tmp_path, capsys):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors(lambda held: {name: held[name] for name in held if name != LAYER})(folder)
    run = cli(*TINY, *QUIET, *using(folder))
    assert run.code == 2
    assert LAYER in capsys.readouterr().err
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("[lm_head]", "'lora.modules_to_save=[lm_head]'"),
        ("[lm_head,embed_tokens,q_proj]", "'lora.modules_to_save=[lm_head]'"),
        ("[q_proj] lora.trainable_token_indices=[3,4]", "tied to the head"),
        ("'(*'", "is not a regular expression"),
    ],
)
def test_an_adapter_that_could_not_be_trained_is_refused(cli, capsys, targets, said):
    run = cli(*TINY, *QUIET, *f"lora.target_modules={targets}".split())
    assert run.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedding_can_be_a_target(cli):
    """Of a model whose head is tied to it."""
    run = cli(*TINY, *QUIET, "lora.target_modules=[embed_tokens]")
    assert run.code == 0
    names = load_file(run.folder / "adapter/adapter_model.safetensors")
    assert any("lora_embedding_A" in name for name in names)
    again = cli("recipe=evaluate", "adapter=run", "evaluate.metrics=[]", folder="scored")
    assert again.code == 0
