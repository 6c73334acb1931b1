"""What ``run.json`` and ``uncommitted.diff`` say about the code of a run, for a stranger who repeats it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import TINY, Run
from runner.runs.git_state import MOST_BYTES, PATCH, source

TOKEN = "hf_QwErTyUiOpAsDfGhJkLzXcVbNm"


def git(folder: Path, *words: str) -> str:
    """The output of a git command."""
    command = ["git", "-c", "user.name=Someone", "-c", "user.email=someone@example.org", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project under git, with everything committed."""
    root = tmp_path / "checkout"
    (root / "conf").mkdir(parents=True)
    (root / "conf" / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    (root / "code.py").write_bytes(b"one\r\ntwo\nthr\xe9e")
    (root / "gone.py").write_text("gone\n", encoding="utf-8")
    (root / ".gitignore").write_text("outputs/\n", encoding="utf-8")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_clean_checkout_has_a_commit_only(checkout: Path) -> None:
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "result.py").write_text("ignored", encoding="utf-8")
    found = source(checkout)
    assert found is not None
    assert found.record() == {"commit": git(checkout, "rev-parse", "HEAD").strip(), "dirty": False}
    assert found.patch == ""


def test_patch_restores_what_ran(checkout: Path, tmp_path: Path) -> None:
    (checkout / "code.py").write_bytes(b"one\r\ntwo changed\nthr\xe9e\nfour")
    (checkout / "conf" / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    git(checkout, "add", "conf")  # staged, which is not committed either
    (checkout / "gone.py").unlink()
    (checkout / "new dir").mkdir()
    (checkout / "new dir" / "näw.py").write_text("print('new')\nno end of line", encoding="utf-8")
    (checkout / "empty.py").touch()
    found = source(checkout)
    assert found is not None
    assert not found.left_out
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))
    (tmp_path / PATCH).write_bytes(found.patch.encode(errors="surrogateescape"))
    git(clone, "apply", str(tmp_path / PATCH))

    def files(root: Path) -> dict[Path, bytes]:
        every = (path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts)
        return {path.relative_to(root): path.read_bytes() for path in every}

    assert files(clone) == files(checkout)


@pytest.mark.slow
def test_patch_is_bounded_and_holds_no_secret(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "value-of-the-key")
    left_out = {
        "code.py": f"token = '{TOKEN}'\n",
        "conf/mine.yaml": "key: value-of-the-key\n",
        ".env": "A=1\n",
        "large.py": "#" * (MOST_BYTES + 1),
        "last.txt": "#" * (MOST_BYTES // 2),  # the one before it has taken more than half
        "weights.safetensors": "weights",
    }
    for name, text in left_out.items():
        (checkout / name).write_text(text, encoding="utf-8")
    (checkout / "kept.py").write_text("kept\n" + "#" * (MOST_BYTES // 2), encoding="utf-8")
    found = source(checkout)
    assert found is not None
    assert set(found.left_out) == set(left_out)
    assert "the value of the environment's SOME_API_KEY" in found.left_out["conf/mine.yaml"]
    assert "+kept" in found.patch
    assert len(found.patch) < MOST_BYTES
    for secret in (TOKEN, "value-of-the-key"):
        assert secret not in found.patch + str(found.record())


def test_folder_in_another_repository_is_no_checkout(checkout: Path) -> None:
    installed = checkout / "outputs" / "site-packages" / "runner"
    (installed / "conf").mkdir(parents=True)
    (installed / "conf" / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    assert source(installed) is None


def test_run_says_what_a_stranger_needs(
    cli: Callable[..., Run], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "code.py").write_text("changed\n", encoding="utf-8")
    monkeypatch.setattr("runner.runs.run_folder.source", lambda: source(checkout))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = cli(*TINY, "trainer.max_steps=1")
    record, patch = run.record, (run.folder / PATCH).read_bytes()
    assert b"+changed" in patch
    digest = f"sha256:{hashlib.sha256(patch).hexdigest()}"
    assert record["git"]["uncommitted"] == {"file": PATCH, "digest": digest}
    assert record["command"].startswith("python -m runner model=tiny")
    assert record["seed"] == 0
    assert {"torch", "numpy", "jinja2", "tokenizers", "pyarrow", "transformers"} <= set(record["packages"])
    assert record["python"].startswith("3.")
    assert record["variables"]["OMP_NUM_THREADS"] == "1"
    assert record["device"]["auto_precision"] in ("bf16", "fp16", "fp32")
    assert record["device"]["float32_matmul"] == "highest"
    assert record["code"].startswith("sha256:")
    assert record["data"]["train"]["fingerprint"]
    assert record["model"]["identity"]["weights"].startswith("random:tiny")
    other = cli(*TINY, "trainer.max_steps=1", "template=alpaca", folder="other").record
    templates = {each["model"]["digests"]["template"] for each in (record, other)}
    assert len(templates) == 2
