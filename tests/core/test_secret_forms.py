"""Secrets are known by their form or by the name before them; what only looks a little like one is not.

The secrets are put together here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from runner.core.secrets import HIDDEN, found_in, masked
from runner.runs import git_state

RANDOM = "wJalrXUtnFEMI7K7MDENG3bPxRfiCYzQ8vLp2sT"
HEX = hashlib.sha256(b"a secret").hexdigest()
JWT = ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", RANDOM])
SECRETS = {
    "private key": f"-----BEGIN PRIVATE {'KEY'}-----\n{RANDOM}\n{RANDOM}\n-----END PRIVATE KEY-----",
    "RSA key": f"-----BEGIN RSA PRIVATE {'KEY'}-----\n{RANDOM}\n",
    "AWS id": "AKIA" + "IOSFODNN7EXAMPL2",
    "AWS key": f"aws_secret_access_key = {RANDOM}2",
    "Slack": "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKlMnOp",
    "Slack hook": "https://hooks.slack.com/services/" + "T0000/B0000/aBcDeFgH",
    "JWT": JWT,
    "GitHub": "ghp_" + RANDOM[:36],
    "Stripe": "sk_live_" + RANDOM[:24],
    "Google": "AIza" + RANDOM[:35],
    "variable": f"STRIPE_KEY={RANDOM}",
    "exported": f"export MY_SERVICE_TOKEN='{RANDOM}'",
    "hex": f"FERNET_KEY={HEX}",
    "YAML": f"  client-secret: {RANDOM}",
    "JSON": f'{{"apiKey": "{RANDOM}"}}',
    "Python": f'API_KEY = "{RANDOM}"',
    "password": "DB_PASSWORD=hunter2-hunter2",
    "quoted password": "password: 'correct-horse-9'",
}
HARMLESS = [
    f"hash = sha256:{HEX}",
    f"--hash=sha256:{HEX}",
    f'"cache_key": "{HEX}"',
    f"commit: {HEX[:40]}",
    "eos_token: <|im_end|>",
    "trainer.eos_token=<|end_of_text|>",
    "token = tokenizer.decode(ids)",
    "api_key=self.token",
    "key = spec.layer_2.self_attn.q_proj",
    "api_key: ${oc.env:API_KEY}",
    "MY_KEY=your-key-goes-here-1234",
    "password = getpass.getpass()",
    "sort_key=model_2024_01_final",
    "max_new_tokens=512, pad_token_id=0",
    "hf_hub_download_kwargs",
    "monkey=abcdefgh12345678ijklmnop",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "lr_scheduler_type: cosine",
    "https://example.org/a/b?c=d",
]


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("around", ["{}", "one line\n+{}\nand another", "{} # why"])
def test_secret_is_found_and_masked(text: str, around: str) -> None:
    whole = around.format(text)
    assert found_in(whole)
    assert HIDDEN in masked(whole)
    for secret in (RANDOM, RANDOM[:24], HEX, "hunter2", "correct-horse", "IOSFODNN7", "aBcDeFgH", "AbCdEfGh"):
        assert secret not in masked(whole)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_kept(text: str) -> None:
    assert found_in(text) is None
    assert masked(text) == text


def test_files_of_this_project_hold_none() -> None:
    """Lock files are full of digests, and a patch without them would not give back what ran."""
    for name in ("requirements.lock", "constraints.txt", "README.md", "pyproject.toml", "conf/config.yaml"):
        assert found_in((ROOT / name).read_text(encoding="utf-8")) is None, name


def test_patch_leaves_out_files_with_secrets_and_lists_them(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("a: 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    (tmp_path / "conf" / "config.yaml").write_text("a: 2\n")
    (tmp_path / "new.lock.txt").write_text(f"name==1 --hash=sha256:{HEX}\n")
    for number, text in enumerate(SECRETS.values()):
        (tmp_path / f"secret{number}.txt").write_text(f"before\n{text}\n")
    found = git_state.source.__wrapped__(tmp_path)
    assert set(found.left_out) == {f"secret{number}.txt" for number in range(len(SECRETS))}
    assert "new.lock.txt" in found.patch
    assert "+a: 2" in found.patch
    for secret in (RANDOM, "hunter2", "correct-horse"):
        assert secret not in found.patch + str(found.record())
