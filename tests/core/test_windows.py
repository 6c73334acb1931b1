"""The command line, its checks and ``recipe=inspect`` need nothing that only Linux and macOS have."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from helpers.paths import ROOT

# Takes away what Python has on Linux and not on Windows, where torch and others run code that is not here:
# those are imported before. Then the commands are run, one after the other.
WITHOUT = """
import asyncio, json, multiprocessing.pool, os, signal, subprocess, sys, tempfile
import datasets, filelock, psutil, torch, transformers
for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"):
    sys.modules[name] = None
for name in ("SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGSTOP", "setitimer", "alarm"):
    delattr(signal, name)
for name in ("fork", "forkpty", "killpg", "getpgid", "setsid", "register_at_fork", "sysconf", "geteuid",
             "sched_getaffinity", "sched_setaffinity", "getloadavg", "mkfifo", "statvfs", "getuid"):
    delattr(os, name)
import runner.core.process.posix as posix
posix.POSIX = False
from runner.__main__ import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    print("CODE", int(code or 0), flush=True)
"""


@pytest.mark.slow
def test_the_check_path_runs_where_posix_is_missing(tmp_path):
    small = ["model=tiny", "data.max_rows=4", "data.cache=false", "data.eval_path=null", "data.metric=null"]
    commands = [
        (["--cfg", "job"], 0, "learning_rate"),
        (["lora.rr=3", "trainer.report_to=wandbb"], 2, "2 config errors"),
        (["-m", "lora.r=4,8"], 2, "native Windows"),
        (["recipe=inspect", *small, f"output_dir={tmp_path / 'run'}"], 0, "loss tokens"),
        (["--help"], 0, "Fine-tune a language model"),
    ]
    words = json.dumps([typed for typed, _, _ in commands])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, words],
        cwd=ROOT,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    parts = done.stdout.split("CODE ")
    assert len(parts) == len(commands) + 1, done.stdout[-3000:]
    for (typed, code, said), before, after in zip(commands, parts, parts[1:], strict=False):
        assert said in before, (typed, before[-2000:])
        assert after.startswith(f"{code}\n"), (typed, before[-2000:])
        assert "Traceback" not in before
