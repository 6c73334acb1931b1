"""``recipe=doctor``: a line for each thing that this machine has, and advice where one is missing."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from runner.doctor import hardware, surroundings
from runner.doctor.finding import checked


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def lines(run):
    return {line["name"]: line for line in json.loads((run.folder / "doctor.json").read_text())}


def test_every_line_is_printed_and_kept(cli, offline, capsys):
    run = cli("recipe=doctor")
    found, said = lines(run), capsys.readouterr().out
    assert run.code == 0
    assert {"Python", "libraries", "precision", "matrix product", "bitsandbytes", "fp8", "attention"} <= set(
        found
    )
    assert {"compiler", "memory", "run folders", "runner's cache", "hub's cache", "git", "hub"} <= set(found)
    assert all(name in said for name in found)
    assert torch.__version__ in found["libraries"]["found"]
    assert re.search(r"nf4 within (9|10)%", found["bitsandbytes"]["found"])
    assert run.record["findings"]["all"] == len(found)


def test_no_model_is_looked_for(cli, offline, monkeypatch):
    monkeypatch.setattr("runner.models.model.find_base", lambda *_: pytest.fail("a model"))
    assert cli("recipe=doctor", "model.path=no/such-model").code == 0


def test_a_library_that_is_broken_is_a_line_of_its_own(cli, offline, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA Setup failed\nmore")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", broken)
    run = cli("recipe=doctor")
    assert run.code == 0
    assert lines(run)["bitsandbytes"] == {
        "name": "bitsandbytes",
        "found": "RuntimeError: CUDA Setup failed",
        "ok": False,
        "advice": "",
    }
    assert "need a look" in capsys.readouterr().out


def test_requirements_that_are_not_met_are_named(monkeypatch):
    wanted = ["torch>=999", "no-such-library>=1", "rich>=1", 'sacrebleu<1; extra == "other"']
    monkeypatch.setattr(surroundings, "requires", lambda name: wanted)
    [found] = [finding for finding in surroundings.packages() if finding.name == "requirements"]
    assert not found.ok
    assert found.found == f"torch {torch.__version__} is not >=999; no-such-library is missing"


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\n")
    monkeypatch.setattr(hardware, "_NVIDIA", file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {finding.name: finding for finding in hardware.devices()}
    assert not found["GPU"].ok
    assert "driver 570.86.15" in found["GPU"].found
    monkeypatch.setattr(hardware, "_NVIDIA", tmp_path / "none")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert "GPU" not in {finding.name for finding in hardware.devices()}


def test_a_disk_that_is_nearly_full_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings, "_LEAST_FREE", 2**62)
    found = list(surroundings.disks(tmp_path / "not" / "there"))
    assert [finding.ok for finding in found] == [False] * 3
    assert all("an 8B model" in finding.advice for finding in found)


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"id": "openai-community/gpt2", "siblings": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_hub_that_answers_and_one_that_does_not(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    [found] = checked("hub", surroundings.hub)
    assert found.ok
    assert "answers in" in found.found
    server.shutdown()
    server.server_close()
    [found] = checked("hub", surroundings.hub)
    assert not found.ok
    assert "HF_HUB_OFFLINE=1" in found.advice
