"""A cold cache without a network for every test here, small sources of a model, and servers."""

import os
import socket

import pytest
from servers import DEAD

from helpers.tiny_gguf import write_gguf

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


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


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


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


@pytest.fixture
def silent_server():
    """It takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
