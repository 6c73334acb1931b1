"""Help, and mistakes, come at once and are of use."""

import subprocess
import sys

import pytest

from helpers.paths import ROOT
from runner.__main__ import main


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help", "lora=typo"], 0), (["--cfg", "job"], 0), (["lora.r=0"], 2), (["--lr=1"], 2)],
)
def test_help_and_mistakes_do_not_import_a_library(words, code):
    script = (
        "import sys; from runner.__main__ import main\n"
        f"try: code = main({words!r})\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    done = run_python("-c", script)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_help_fits_a_screen_and_names_what_there_is():
    done = run_python("-m", "runner", "--help")
    lines = done.stdout.splitlines()
    assert len(lines) <= 60
    assert "learning_rate: 0.0002" not in done.stdout
    for word in ("sft", "qwen3-4b", "nf4", "alpaca", "-m lora.r=8,16", "--config-path"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"), [("lora.rank=8", "lora.r"), ("trainer.lr=1e-4", "trainer.learning_rate")]
)
def test_a_short_name_is_answered_with_the_field_of_the_library(typed, meant, capsys):
    assert main([typed]) == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err
