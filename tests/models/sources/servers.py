"""Servers on the loopback address: a package index, and a stand-in for the hub."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

DEAD = "http://127.0.0.1:9"  # nothing listens on the discard port
TOKEN = "hf_a_secret_that_must_not_be_seen"


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
