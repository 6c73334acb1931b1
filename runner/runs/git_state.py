"""The project's own code behind a run: its commit, and what of it was not committed, as a patch."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runner.core.atomic import sha256_of
from runner.core.paths import CONFIG_DIR, PACKAGE
from runner.core.secrets import found_in

PATCH = "uncommitted.diff"  # beside run.json
MOST_BYTES = 2**20  # of the patch; a file that does not fit is named instead
_TEXT = (".py", ".yaml", ".yml", ".toml", ".json", ".j2", ".js", ".md", ".txt", ".cfg", ".sh")
_PRIVATE = re.compile(r"(^|/)(\.env|\.netrc|\.?credentials?|id_[a-z0-9]+)([./]|$)|\.(pem|key|p12)$", re.I)


@dataclass(frozen=True)
class Source:
    """A checkout: its commit, and the ``patch`` from there to what ran; ``left_out`` says why by file."""

    commit: str
    dirty: bool
    patch: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        facts: dict[str, Any] = {"commit": self.commit, "dirty": self.dirty}
        if self.patch:
            facts["uncommitted"] = {"file": PATCH, "digest": sha256_of(self.patch)}
        if self.left_out:
            facts["left_out"] = self.left_out
        return facts


@cache
def source(root: Path = CONFIG_DIR.parent) -> Source | None:
    """The state of the checkout in ``root`` at the first call (memoised); None for an installed package.

    ``git apply uncommitted.diff`` on the commit gives what ran, less what ``left_out`` names: what is too
    large, holds a secret, or is not text.
    """
    if _git(["ls-files", "--error-unmatch", "conf/config.yaml"], root) is None:
        return None  # a folder inside somebody's repository is not a checkout of this project
    status = _git(["status", "--porcelain=v2", "--branch", "--untracked-files=all", "-z", "."], root)
    entries = (status or "").split("\0")
    commit = next((entry.split()[-1] for entry in entries if entry.startswith("# branch.oid ")), "")
    changes = [entry for entry in entries if entry and not entry.startswith("#")]
    if not changes:
        return Source(commit, dirty=False)
    plain = ["--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--binary", "--no-relative"]
    tracked = _git(["diff", *plain, "HEAD", "--", "."], root) or ""
    pieces = [(_name(text), text) for text in re.split(r"(?m)^(?=diff --git )", tracked) if text]
    top = Path((_git(["rev-parse", "--show-toplevel"], root) or str(root)).rstrip("\n"))
    pieces += [(entry[2:], _added(top, entry[2:])) for entry in changes if entry.startswith("? ")]
    return _patch(commit, pieces)


def _patch(commit: str, pieces: list[tuple[str, str]]) -> Source:
    """All pieces that may be kept, one after the other."""
    kept, left_out, size = [], {}, 0
    for name, text in pieces:
        length = len(text.encode(errors="surrogateescape"))
        reason = found_in(text) if text else "not a source file"
        if _PRIVATE.search(name):
            reason = "by its name it may hold secrets"
        elif not reason and size + length > MOST_BYTES:
            reason = f"too large: {length:,} bytes"
        if reason:
            left_out[name] = reason
        else:
            kept.append(text)
            size += length
    return Source(commit, True, "".join(kept), left_out)


def _name(piece: str) -> str:
    """The file that a piece of a patch changes."""
    found = re.search(r"(?m)^(?:\+\+\+ b|--- a)/(.*?)\t?$", piece)
    return found[1] if found else piece.partition("\n")[0].removeprefix("diff --git a/").partition(" b/")[0]


def _added(top: Path, name: str) -> str:
    """An untracked file as a patch that adds it; empty for what is not a readable source file."""
    file = top / name
    if not name.endswith(_TEXT) or file.is_symlink() or file.stat().st_size > MOST_BYTES:
        return ""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return ""
    mode = "100755" if os.access(file, os.X_OK) else "100644"
    header = f"diff --git a/{name} b/{name}\nnew file mode {mode}\n"
    if not text:
        return header
    lines = text.removesuffix("\n").split("\n")
    body = "".join(f"+{line}\n" for line in lines)
    end = "" if text.endswith("\n") else "\\ No newline at end of file\n"
    return f"{header}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{body}{end}"


@cache
def package_digest() -> str:
    """``sha256:HEX`` of the project's own Python files, wherever they are installed."""
    digest = hashlib.sha256()
    for file in [*sorted(PACKAGE.rglob("*.py")), *sorted((PACKAGE.parent / "recipes").glob("*.py"))]:
        digest.update(f"{file.relative_to(PACKAGE.parent)}\n".encode())
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _git(arguments: list[str], folder: Path) -> str | None:
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=false", *arguments],
            cwd=folder,
            capture_output=True,
            timeout=10,
            env=quiet,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None
