"""Publishing against a stand-in for the hub: what arrives, what is refused, where the token goes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from helpers.command import TINY
from runner.__main__ import main
from runner.runs import push_to_hub

pytestmark = pytest.mark.slow

TOKEN = "hf_standInTokenThatNobodyMaySee"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = (*TINY, "trainer.save_strategy=no", "data.metric=null")


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that an upload uses; safetensors go through LFS, as they do there."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self._answer(self.server.who_status, self.server.who)
        else:
            self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, path = self.server, self.path
        server.calls.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "who are you?"})
        elif path == "/api/repos/create":
            server.created.append(json.loads(body))
            self._answer(200, {"url": f"{server.address}/me/orders"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/models/me/orders/preupload/main":
            files = [self._mode(file["path"]) for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif path == "/me/orders.git/info/lfs/objects/batch":
            objects = [self._place(entry) for entry in json.loads(body)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif path == "/api/models/me/orders/commit/main":
            if server.commit_status == 200:
                self._commit([json.loads(line) for line in body.splitlines()])
            address = f"{server.address}/me/orders/commit/{COMMIT}"
            said = {"success": True, "commitUrl": address, "commitOid": COMMIT}
            failed = {"error": f"quota exceeded for {TOKEN}"}
            self._answer(server.commit_status, said if server.commit_status == 200 else failed)
        else:
            self._answer(404, {"error": f"no {path} here"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = content
        self._answer(200, {})

    def _mode(self, path: str) -> dict[str, object]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _place(self, entry: dict[str, object]) -> dict[str, object]:
        return {**entry, "actions": {"upload": {"href": f"{self.server.address}/blob/{entry['oid']}"}}}

    def _commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
                self.server.large.append(value["path"])

    def _answer(self, status: int, value: dict) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status >= 400:
            self.send_header("X-Error-Message", str(value.get("error")))
        self.end_headers()
        self.wfile.write(text)


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.who_status, self.commit_status = 200, 200
        self.who = {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}}
        self.calls: list[str] = []
        self.created: list[dict] = []
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.large: list[str] = []


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, named by the environment together with a token for it."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it needs a server of its own
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*QUICK, f"output_dir={folder}"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_secret(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The token is in no file of a run and in nothing it printed; what it printed is returned."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"run.json", "config.yaml", "report.html"} <= {file.name for file in files}
    assert [file for file in files if TOKEN.encode() in file.read_bytes()] == []
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err
    return printed.out + printed.err


def test_an_adapter_arrives_with_its_card(cli, hub, capfd):
    run = cli(*QUICK, "push_to=me/orders")
    assert run.code == 0
    assert [(made["organization"], made["name"]) for made in hub.created] == [("me", "orders")]
    assert hub.files == contents(run.folder / "adapter")
    assert hub.large == ["adapter_model.safetensors"]
    digest = hashlib.sha256(hub.files["adapter_model.safetensors"]).hexdigest()
    assert list(hub.blobs) == [digest]
    card = hub.files["README.md"].decode()
    assert "base_model:" in card
    assert "Training loss" in card
    assert run.record["pushed"] == {
        "url": f"{hub.address}/me/orders",
        "commit": COMMIT,
        "commit_url": f"{hub.address}/me/orders/commit/{COMMIT}",
    }
    assert f"{hub.address}/me/orders" in assert_secret(run.folder, capfd)


def test_a_merged_model_arrives_with_its_card(cli, hub, trained, capfd):
    run = cli("recipe=merge", f"adapter={trained}", "push_to=me/orders")
    assert run.code == 0
    assert hub.files == contents(run.folder / "model")
    assert hub.large == ["model.safetensors"]
    assert "library_name: transformers" in hub.files["README.md"].decode()
    assert run.record["pushed"]["commit"] == COMMIT
    assert_secret(run.folder, capfd)


@pytest.mark.parametrize("export", ["gguf", "int4"])
def test_what_is_exported_arrives_beside_the_model(cli, hub, trained, capfd, export):
    kinds = ("gguf.kind=[f16,q8_0]",) if export == "gguf" else ()
    run = cli("recipe=merge", f"adapter={trained}", f"export={export}", "push_to=me/orders", *kinds)
    assert run.code == 0
    made = ["model-F16.gguf", "model-Q8_0.gguf"] if export == "gguf" else ["model-nf4"]
    expected = contents(run.folder / "model")
    for path in (run.folder / name for name in made):
        files = path.iterdir() if path.is_dir() else [path]
        expected |= {str(file.relative_to(run.folder)): file.read_bytes() for file in files}
    assert hub.files == expected
    assert made[0] in assert_secret(run.folder, capfd)


def test_an_upload_that_fails_leaves_the_result_and_says_how_to_go_on(cli, hub, trained, capfd):
    hub.commit_status = 403
    run = cli("recipe=merge", f"adapter={trained}", "push_to=me/orders")
    assert run.code == 1
    assert run.record["status"] == "failed"
    assert "pushed" not in run.record
    assert (run.folder / "model/model.safetensors").is_file()
    said = assert_secret(run.folder, capfd)  # although the server's answer names it
    assert "me/orders could not be uploaded" in said
    assert f"hf upload me/orders {run.folder.name}/model" in said


def refused(cli, capfd, name: str = "me/orders") -> str:
    """What is said about a command that is refused before anything is loaded or made."""
    began = time.monotonic()
    run = cli(*QUICK, f"push_to={name}")
    assert run.code == 2
    assert not run.folder.exists()
    assert time.monotonic() - began < 5
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err
    return printed.err


@pytest.mark.parametrize("name", ["orders", "me/or ders", "me/orders/v2", "me/..", "https://hub/me/orders"])
def test_a_name_that_no_repository_has_is_refused(cli, hub, capfd, name):
    assert "OWNER/NAME" in refused(cli, capfd, name)
    assert hub.calls == []


def test_without_a_token_nothing_is_begun(cli, hub, capfd, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    said = refused(cli, capfd)
    assert "there is no token for the hub" in said
    assert "hf auth login" in said


def test_a_token_that_the_hub_does_not_know_is_refused(cli, hub, capfd):
    hub.who_status = 401
    assert "does not accept the token (401)" in refused(cli, capfd)


def test_a_token_that_may_only_read_is_refused(cli, hub, capfd):
    hub.who["auth"]["accessToken"]["role"] = "read"
    assert "the token may only read" in refused(cli, capfd)


def test_the_owner_must_be_the_user_or_one_of_their_organisations(cli, hub, capfd):
    said = refused(cli, capfd, "others/orders")
    assert "does not belong to others" in said
    assert "me/..., us/..." in said
    push_to_hub.check_publish(_config("us/orders"))
    hub.who["auth"]["accessToken"]["role"] = "fineGrained"  # which may belong to more than it tells
    push_to_hub.check_publish(_config("others/orders"))


def test_a_hub_that_cannot_be_reached_costs_seconds(cli, hub, capfd, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(cli, capfd)


def test_a_hub_that_does_not_answer_costs_seconds(cli, hub, capfd, monkeypatch):
    monkeypatch.setattr(push_to_hub, "PATIENCE", 0.2)
    monkeypatch.setattr(Hub, "do_GET", lambda self: time.sleep(3))
    assert "cannot be reached (TimeoutError)" in refused(cli, capfd)


def test_an_offline_machine_publishes_nothing(cli, hub, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "set to be offline" in refused(cli, capfd)


def _config(name: str) -> object:
    from runner.config.settings import RunConfig

    return RunConfig("sft", push_to=name)
