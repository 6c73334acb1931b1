"""Row 38: tokens and passwords of the environment or the command are in no file and on no terminal."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import TINY, Run
from helpers.paths import ROOT
from runner.core.errors import ExitCode
from runner.core.secrets import HIDDEN, found_in, masked

pytestmark = pytest.mark.report

# By the variable that holds it; made up.
SECRETS = {"HF_TOKEN": "hf_QwErTyUiOpAsDfGhJkLzXcVbNm", "WANDB_API_KEY": "0a1b2c3d4e5f60718293a4b5c6d7e8f9"}
TYPED = "not-in-any-variable-1"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[], str]:
    """Assert that no secret was printed or is in any file under the test's folder; what was printed."""

    def check() -> str:
        printed = "".join(capfd.readouterr())
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        for secret in (*SECRETS.values(), TYPED):
            assert secret not in printed
            for path in files:
                assert secret.encode() not in path.read_bytes(), path
                assert secret not in str(path)
        return printed

    return check


def test_run_holds_no_secret(cli: Callable[..., Run], silent) -> None:
    run = cli(*TINY, "trainer.save_strategy=steps", "trainer.save_steps=1")
    assert run.code == 0
    assert any("checkpoints" in name for name in run.files())
    assert not any(name.endswith("training_args.bin") for name in run.files())  # has the library's hub_token
    silent()


@pytest.mark.slow
def test_sweep_holds_no_secret(cli: Callable[..., Run], silent) -> None:
    run = cli("-m", *TINY, "trainer.max_steps=1", "lora.r=2,4", folder="sweep")
    assert run.code == 0
    assert {"sweep.json", "leaderboard.csv", "report.html"} <= run.files()
    assert any(name.startswith("jobs/") and name.endswith(".log") for name in run.files())
    silent()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("word", "named"),
    [
        (f"trainer.hub_token={TYPED}", "set HF_TOKEN in the environment"),
        ("trainer.push_to_hub=true", "set push_to"),
        (
            f"push_to=https://me:{TYPED}@hub.example/me/model",
            "push_to holds a name or password in an address",
        ),
        (f"model.path={SECRETS['HF_TOKEN']}", "model.path holds the value of the environment's HF_TOKEN"),
        (
            f"template.system='Key: {SECRETS['WANDB_API_KEY']}'",
            "the value of the environment's WANDB_API_KEY",
        ),
        ("data.path=hf_0123456789abcdefghij0123", "data.path holds an access token"),
        (f"data.path=http://{TYPED}@rows.example/rows.jsonl", "data.path holds a name or password"),
        (f"experiment=https://me:{TYPED}@x.example", "unknown experiment"),
        (f"trainer.max_steps=https://me:{TYPED}@x.example", "trainer.max_steps"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-m", "lora.r=2,4"]])
def test_secret_in_a_config_is_refused_unseen(cli, silent, word: str, named: str, flags: list[str]) -> None:
    run = cli(*TINY, *flags, word)
    assert run.code == ExitCode.CONFIG_ERROR
    assert not run.folder.exists()
    assert named in silent()


def test_failed_run_tells_its_error_without_the_secret(cli, silent, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\ndef f(answer, expected):\n    raise RuntimeError('401 for ' + os.environ['HF_TOKEN'])\n",
        encoding="utf-8",
    )
    run = cli(
        "recipe=evaluate", "model=tiny", "data=orders", "data.eval_max_rows=2", "evaluate.function=own.py:f"
    )
    assert run.code != 0
    error = run.record["error"]
    assert f"401 for {HIDDEN}" in error["message"]
    assert f"401 for {HIDDEN}" in error["traceback"]
    assert "401 for" in (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"401 for {HIDDEN}" in silent()


@pytest.mark.slow
def test_error_that_nobody_catches_is_printed_without_the_secret(tmp_path: Path, silent) -> None:
    """The log of a sweep's job is what its process prints."""
    command = [sys.executable, "-m", "runner.sweep.worker", str(tmp_path / SECRETS["HF_TOKEN"]), ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
    assert HIDDEN in done.stderr
    assert SECRETS["HF_TOKEN"] not in done.stderr
    silent()


MODULE = "import runpy; runpy.run_module('runner', run_name='__main__')"
INSTALLED = "import pkgutil, sys; sys.exit(pkgutil.resolve_name({name!r})())"  # as pip writes it


@pytest.mark.parametrize("start", [MODULE, INSTALLED], ids=["python -m runner", "runner"])
def test_both_commands_print_an_uncaught_error_without_the_secret(tmp_path: Path, silent, start: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    fails = (
        "import os\nfrom runner.cli import run_config\n"
        "def parse(*given):\n    raise RuntimeError('401 for ' + os.environ['HF_TOKEN'])\n"
        "run_config.parse = parse\n"
    )
    command = [sys.executable, "-c", fails + start.format(name=scripts["runner"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert f"RuntimeError: 401 for {HIDDEN}" in done.stderr
    assert SECRETS["HF_TOKEN"] not in done.stderr
    silent()


def test_only_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false---")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    for text in ("false---", "true", "trainer.max_length=512", "trainer.eos_token=<|im_end|>", "sk-learn"):
        assert masked(text) == text
        assert found_in(text) is None
    assert masked("git clone https://me:pass@host/x") == f"git clone https://{HIDDEN}@host/x"
    assert masked("trainer.hub_token=abc lora.r=8") == f"trainer.hub_token={HIDDEN} lora.r=8"
