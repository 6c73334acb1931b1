"""Finding a model on the hub, or in its cache."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from asked import refusal
from published import write_qwen
from servers import DEAD, TOKEN, Hub, commit_of

from helpers.paths import ROOT
from runner.config.settings import ModelSettings
from runner.models import locate
from runner.models.locate import find_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """A random llama with the byte tokenizer, whole and in shards, as file contents by name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from runner.models.model import byte_tokenizer

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    variants = []
    for size in ("1GB", "40KB"):
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder, max_shard_size=size)
        tokenizer.save_pretrained(folder)
        variants.append({file.name: file.read_bytes() for file in folder.iterdir()})
    return variants


UNWANTED = {
    "pytorch_model.bin": b"pickled",
    "training_args.bin": b"pickled",
    "consolidated.safetensors": b"the same weights again",
    "model.onnx": b"",
    "README.md": b"",
    "original": b"",
}


@pytest.fixture
def hub(model_files, serve, monkeypatch, tmp_path):
    """A running stand-in for the hub which this process and its children talk to."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = serve(Hub(model_files[0] | UNWANTED))
    point_at(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    close_session()
    yield server
    close_session()


def point_at(url, monkeypatch):
    from huggingface_hub import constants, hf_api

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def test_a_hub_model_of_its_own_code_is_converted_and_keeps_its_commit(hub, tmp_path, cache, monkeypatch):
    published = {file.name: file.read_bytes() for file in write_qwen(tmp_path / "published").iterdir()}
    hub.commits = dict.fromkeys(hub.commits, published)
    assert not locate.is_at_hand("owner/tiny")
    found = find_model("owner/tiny")
    assert (found.revision, found.converted, found.notes) == (commit_of(1), True, ())
    assert found.folder.parent == cache / "models"
    assert found.folder.name.startswith("tiny-")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate.is_at_hand("owner/tiny")
    assert find_model("owner/tiny") == found
    shutil.rmtree(found.folder)
    assert not locate.is_at_hand("owner/tiny")


def test_a_hub_model_is_fetched_and_then_found_offline(hub, model_files, monkeypatch, no_network_after):
    found = find_model("owner/tiny")
    assert found == locate.Found(found.folder, commit_of(1))
    assert {file.name for file in found.folder.iterdir()} == set(model_files[0])
    assert hub.downloads() == set(model_files[0])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    no_network_after()
    assert find_model("owner/tiny") == found
    assert find_model("owner/tiny", commit_of(1)) == found


@pytest.fixture
def no_network_after(request):
    """A call that takes the network away in the middle of a test."""
    return lambda: request.getfixturevalue("no_network")


def test_the_environment_alone_is_enough(hub):
    """The same in processes of their own, where the hub's client reads its settings at import."""
    script = "from runner.models.locate import find_model; print(find_model('owner/tiny').folder.name)"

    def run(**environment):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run(HF_TOKEN=TOKEN) == commit_of(1)
    assert hub.tokens() == {f"Bearer {TOKEN}"}
    count = len(hub.requests)
    assert run(HF_HUB_OFFLINE="1", HF_ENDPOINT=DEAD) == commit_of(1)
    assert len(hub.requests) == count


@pytest.mark.parametrize("revision", [None, "main", "v1", "feature/x", commit_of(1)])
def test_a_revision_is_recorded_as_its_commit(hub, revision):
    assert find_model("owner/tiny", revision).revision == commit_of(1)
    hub.down = True
    again = find_model("owner/tiny", revision)
    assert again.revision == commit_of(1)
    assert bool(again.notes) == (revision != commit_of(1))


def test_a_branch_follows_the_hub_and_a_commit_does_not(hub, model_files):
    first = find_model("owner/tiny")
    hub.commits[commit_of(2)] = model_files[0] | {"README.md": b"new", "config.json": b"{}"}
    hub.refs["main"] = commit_of(2)
    assert find_model("owner/tiny").revision == commit_of(2)
    hub.requests.clear()
    assert find_model("owner/tiny", commit_of(1)) == first
    assert not hub.requests
    hub.down = True
    found = find_model("owner/tiny")
    assert found.notes == (
        f"owner/tiny: the hub answered 503; commit {commit_of(2)} is used, from the cache",
    )


def test_a_hub_model_trains_like_any_folder(hub, model_files):
    import torch

    from runner.models.model import find_base, load_model

    hub.commits[commit_of(1)] = model_files[1] | UNWANTED
    assert any("-of-" in name for name in model_files[1])
    base = find_base(ModelSettings(path="owner/tiny"))
    assert base.record()["revision"] == commit_of(1)
    assert hub.downloads() == set(model_files[1])
    model = load_model(base, None, torch.float32, seed=0)
    from safetensors.torch import load

    whole = load(model_files[0]["model.safetensors"])
    assert all(torch.equal(model.state_dict()[name].cpu(), value) for name, value in whole.items())


def test_pickled_weights_are_fetched_if_there_are_no_others(hub, model_files):
    files = {name: data for name, data in model_files[0].items() if name != "model.safetensors"}
    hub.commits[commit_of(1)] = files | UNWANTED
    find_model("owner/tiny")
    assert hub.downloads() == {*files, "pytorch_model.bin"}


def test_a_hub_model_with_other_weights_is_refused(hub):
    hub.commits[commit_of(1)] = {"config.json": b"{}", "tiny-q4.gguf": b""}
    assert "hf download owner/tiny tiny-q4.gguf" in refusal("owner/tiny")
    assert not hub.downloads()


def test_the_rest_of_an_interrupted_download_is_not_a_model(hub, monkeypatch):
    folder = find_model("owner/tiny").folder
    (folder / "model.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not in the hub's cache" in refusal("owner/tiny")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert (find_model("owner/tiny").folder / "model.safetensors").is_file()


def test_a_gated_model_says_what_to_do_and_keeps_the_token_to_itself(hub, monkeypatch, tmp_path, capfd):
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    message = refusal("owner/tiny")
    assert "it is gated" in message
    assert "accept its licence" in message
    assert "hf auth login" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    find_model("owner/tiny")
    assert hub.tokens() == {"Bearer hf_of_someone_else", f"Bearer {TOKEN}"}
    hub.commits.clear()
    said = message + refusal("owner/tiny", "v2") + "".join(capfd.readouterr())
    assert TOKEN not in said
    assert "hf_of_someone_else" not in said
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not any(TOKEN.encode() in data for data in written)


def test_an_unknown_model_or_revision_says_what_to_do(hub):
    message = refusal("owner/tinny")
    assert "the hub has no such model, or it is private" in message
    assert "hf auth login" in message
    assert "has no revision 'v9'" in refusal("owner/tiny", "v9")
    assert "cannot be a name on the hub" in refusal("owner/a--b")


def test_an_unreachable_hub_is_given_up_in_seconds(hub, monkeypatch):
    point_at(DEAD, monkeypatch)
    begun = time.monotonic()
    message = refusal("owner/tiny")
    assert time.monotonic() - begun < 6
    assert "'owner/tiny' is not a folder here, and the hub cannot be reached" in message
    assert "where there is a network: hf download owner/tiny; or model.path=FOLDER" in message


def test_a_silent_hub_is_given_up_in_seconds(hub, silent_server, monkeypatch):
    from runner.models import hub as hub_module

    find_model("owner/tiny")
    point_at(silent_server, monkeypatch)
    monkeypatch.setattr(hub_module, "PATIENCE", 1.0)
    begun = time.monotonic()
    assert "the hub cannot be reached; commit" in find_model("owner/tiny").notes[0]
    assert time.monotonic() - begun < 3


def test_a_cold_hub_cache_offline_is_refused_at_once(hub, no_network, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    begun = time.monotonic()
    message = refusal("owner/tiny", "v1")
    assert time.monotonic() - begun < 1
    assert "where there is a network: hf download owner/tiny --revision v1" in message
