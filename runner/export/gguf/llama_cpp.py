"""GGUF files by the user's own llama.cpp: for kinds and architectures that cannot be written here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from runner.core.errors import ConfigError, Issue, RunnerError

CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER = "llama-quantize"
_BUILT = ("build/bin", "bin", ".")  # of its own build, of an older one, and beside the script
_DIRECT = ("f32", "f16", "bf16", "q8_0")  # kinds that the converter writes by itself
_SHOWN = 2000  # characters of a failed program's output


def check_checkout(checkout: str, kind: str) -> None:
    """Check that a checkout has the programs that a kind needs. Raises ``ConfigError``."""
    folder, where = Path(checkout).expanduser(), f"gguf.llama_cpp={checkout}"
    issues = []
    if not (folder / CONVERTER).is_file():
        issues.append(Issue(where, f"holds no {CONVERTER}", "name a checkout of llama.cpp"))
    elif kind not in _DIRECT and _quantizer(folder) is None:
        hint = f"in that folder: cmake -B build && cmake --build build --target {QUANTIZER}"
        issues.append(Issue(where, f"holds no {QUANTIZER} in {' or '.join(_BUILT)}", hint))
    if issues:
        raise ConfigError(issues)


def write_with_llama_cpp(file: Path, source: Path, checkout: str, kind: str) -> None:
    """Convert the model in ``source``, and quantise it if the kind wants that. Raises ``RunnerError``."""
    folder = Path(checkout).expanduser().resolve()
    script = [sys.executable, str(folder / CONVERTER), str(source.resolve())]
    if kind in _DIRECT:
        _run([*script, "--outfile", str(file.resolve()), "--outtype", kind], folder)
        return
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".gguf-") as scratch:
        whole = Path(scratch) / "whole.gguf"
        _run([*script, "--outfile", str(whole.resolve()), "--outtype", "auto"], folder)
        _run([str(_quantizer(folder)), str(whole.resolve()), str(file.resolve()), kind.upper()], folder)


def _quantizer(folder: Path) -> Path | None:
    found = (folder / place / QUANTIZER for place in _BUILT)
    return next((program for program in found if program.is_file()), None)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip())[-_SHOWN:]
        raise RunnerError(
            f"{Path(command[1]).name if command[0] == sys.executable else QUANTIZER} failed: {output}"
        )
