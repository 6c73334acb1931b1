"""``recipe=doctor``: a line for each thing that this machine has, and advice where one is missing."""

import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from helpers.command import issues, one
from runner.config.settings import RunConfig
from runner.doctor import hardware, surroundings
from runner.doctor.finding import Finding, checked


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
    status = 200

    def do_GET(self):
        body = json.dumps({"id": "openai-community/gpt2", "siblings": []}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def online(monkeypatch):
    """A hub on this machine."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_and_one_that_does_not(online):
    [found] = checked("hub", surroundings.hub)
    assert found.ok
    assert "answers in" in found.found
    online.shutdown()
    online.server_close()
    [found] = checked("hub", surroundings.hub)
    assert not found.ok
    assert "HF_HUB_OFFLINE=1" in found.advice


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words",
    [
        ["data=file"],
        ["data.path=nowhere.jsonl"],
        ["model.path=./nothing"],
        ["model.path=null"],
        ["adapter=./nothing"],
        ["experiment=qwen-7b-chat-qlora"],
        ["template.chat_template=no.jinja"],
        ["quantization=nf4", "lora=none"],
    ],
    ids=" ".join,
)
def test_what_it_does_not_read_may_be_missing(words):
    assert one("recipe=doctor", *words, "output_dir=d", "seed=3") == RunConfig("doctor", 3, "d")


def test_a_key_that_is_mistyped_or_has_no_effect_is_said_all_the_same():
    assert "unknown key 'lora.q'" in issues("recipe=doctor", "lora.q=1")[0]
    assert "no effect with recipe=doctor" in issues("recipe=doctor", "resume=auto")[0]
    [said] = issues("doctor")
    assert said.endswith("did you mean recipe=doctor?")


def test_a_key_of_a_file_that_it_does_not_read_is_no_hindrance(tmp_path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\non_oom: shrink\ndata:\n  path: ???\n")
    words = [f"--config-dir={folder.parent}", "experiment=mine"]
    assert one("recipe=doctor", *words) == RunConfig("doctor")


def test_files_that_vanish_while_a_cache_is_added_up_are_left_out(monkeypatch, tmp_path):
    for name in ("kept", "gone"):
        (tmp_path / name).write_bytes(b"x" * 2**20)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    walk = surroundings.os.walk

    def vanishing(folder):
        for entry in walk(folder):
            (tmp_path / "gone").unlink(missing_ok=True)
            yield entry

    monkeypatch.setattr(surroundings.os, "walk", vanishing)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    monkeypatch.setattr(surroundings, "_SECONDS", 60)
    found = {finding.name: finding.found for finding in surroundings.disks(tmp_path)}
    assert len(found) == 3
    assert f"{tmp_path}, 0.0 GiB, " in found["runner's cache"]


def test_a_large_folder_is_not_added_up_to_its_end(monkeypatch, tmp_path):
    for number in range(3):
        (tmp_path / str(number)).write_bytes(b"")
        os.truncate(tmp_path / str(number), 2**31)
    monkeypatch.setattr(surroundings, "_SECONDS", -1)
    assert surroundings._size(tmp_path) == "over 2.0 GiB"
    monkeypatch.setattr(surroundings, "_SECONDS", 60)
    assert surroundings._size(tmp_path) == "6.0 GiB"


def test_a_folder_that_cannot_be_reached_costs_no_other_line(monkeypatch, tmp_path):
    def broken(folder):
        raise OSError("Stale file handle")

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("RUNNER_CACHE", str(file / "below"))
    monkeypatch.setattr(surroundings, "_hub_cache", lambda: broken(None))
    runs, own, hub = surroundings.disks(tmp_path)
    assert runs.ok
    assert not own.ok
    assert own.advice == f"{file} is a file: RUNNER_CACHE=FOLDER"
    assert (hub.name, hub.found, hub.ok) == ("hub's cache", "OSError: Stale file handle", False)


def test_what_was_found_before_a_check_fails_is_kept():
    def check():
        yield Finding("GPU 0", "well")
        raise RuntimeError("GPU 1 is lost")

    assert [finding.found for finding in checked("device", check)] == ["well", "RuntimeError: GPU 1 is lost"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("memory.max", "1073741824\n", "; its container is ended above 1.0 GiB"),
        ("memory/memory.limit_in_bytes", "2147483648\n", "; its container is ended above 2.0 GiB"),
        ("memory.max", "max\n", ""),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", ""),
    ],
)
def test_the_limit_of_a_container_is_said(monkeypatch, tmp_path, file, text, said):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    monkeypatch.setattr(surroundings, "_CGROUP", tmp_path)
    found = next(iter(surroundings.memory())).found
    assert found.endswith(f"cores{said}")


@pytest.mark.parametrize(
    ("status", "ok", "said"),
    [(404, True, "answers in"), (401, False, "refuses the token (401)"), (503, False, "with an error (503)")],
)
def test_what_the_hub_answers_is_told_apart(monkeypatch, online, status, ok, said):
    monkeypatch.setattr(Hub, "status", status)
    [found] = checked("hub", surroundings.hub)
    assert found.ok == ok
    assert said in found.found
    assert bool(found.advice) != ok


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch, online):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(30))
    monkeypatch.setattr(surroundings, "_PATIENCE", 0.05)
    began = time.monotonic()
    [found] = checked("hub", surroundings.hub)
    assert time.monotonic() - began < 5
    assert not found.ok
    assert "does not answer (TimeoutError)" in found.found


@pytest.mark.parametrize(("kind", "said"), [("cpu", "AMD, cpu, 2 threads"), ("mps", "AMD, mps")])
def test_threads_are_a_cpus(monkeypatch, kind, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {"name": "AMD", "kind": kind, "count": 2}
    monkeypatch.setattr(hardware.environment, "device", lambda: found)
    assert next(iter(hardware.devices())).found == said
