"""One process at a time in a folder, named to the others, and gone with its process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from helpers.command import TINY
from helpers.kills import Point, strike
from helpers.starts import holding, start
from runner.__main__ import main
from runner.core.errors import ConfigError
from runner.core.process import folder_lock
from runner.core.process.folder_lock import NAME, hold, holder


def test_another_process_is_named_and_gone_when_it_is_killed(tmp_path):
    with holding(tmp_path) as pid:
        named = f"host {socket.gethostname()}, pid {pid}"
        assert holder(tmp_path) == named
        with pytest.raises(ConfigError, match=rf"another process runs here \({named}\)"):
            hold(tmp_path, "runs here")
    assert (tmp_path / NAME).exists()  # it was killed
    assert holder(tmp_path) is None
    hold(tmp_path, "runs here").release()
    assert not (tmp_path / NAME).exists()


def test_a_process_that_got_the_number_of_a_killed_one_is_not_taken_for_it(tmp_path):
    (tmp_path / NAME).write_text(f'{{"host": "{socket.gethostname()}", "pid": {os.getppid()}}}')
    assert holder(tmp_path) is None
    hold(tmp_path, "runs here").release()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', "\x00" * 10])
def test_whatever_the_file_says_the_kernel_decides(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    hold(tmp_path, "runs here").release()


def test_the_same_process_holds_it_once(tmp_path):
    first = hold(tmp_path, "runs here")
    assert hold(tmp_path, "runs here") is first
    first.release()
    first.release()
    assert holder(tmp_path) is None


def test_a_forked_child_does_not_keep_it(tmp_path):
    lock = hold(tmp_path, "runs here")
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        os.close(lock.descriptor)  # as the kernel does for a parent that is killed
        time.sleep(0.5)  # until it runs
        assert holder(tmp_path) is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        folder_lock._held.clear()


def test_the_children_of_a_parent_that_is_gone_are_waited_for(tmp_path, monkeypatch):
    """A sweep that was killed and is started again: its jobs end some seconds after it."""
    lock = hold(tmp_path, "runs here")
    child = subprocess.Popen(["sleep", "1"], pass_fds=[lock.descriptor])
    os.close(lock.descriptor)
    folder_lock._held.clear()
    monkeypatch.setattr(folder_lock, "_is_gone", lambda owner: True)
    began = time.monotonic()
    hold(tmp_path, "runs here").release()
    assert time.monotonic() - began > 0.5
    child.wait()


def paused(words: list[str], place: Point) -> int:
    strike(place, lambda: (Path("paused").touch(), time.sleep(60)))
    return main(words)


@pytest.mark.parametrize("again", [(), ("resume=auto",)], ids=str)
def test_a_run_in_a_folder_that_is_held_is_refused(tmp_path, capsys, again):
    with holding(tmp_path / "run") as pid:
        assert main([*TINY, f"output_dir={tmp_path / 'run'}", *again]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"another process runs in this folder (host {socket.gethostname()}, pid {pid})" in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]


@pytest.mark.slow
@pytest.mark.parametrize("again", [(), ("resume=auto",), ("resume=run",)], ids=str)
def test_two_starts_in_one_folder_do_not_mix(tmp_path, monkeypatch, capsys, again):
    """The second is told who runs there; when that one is killed, the folder can be resumed."""
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "trainer.max_steps=1", "generation.samples=0", "output_dir=run"]
    process = start(paused, tmp_path, words, Point("recipes.train:prepare"))
    for _ in range(2000):
        if Path("paused").exists():
            break
        time.sleep(0.01)
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    assert main([*words, *again]) == 2
    told = " ".join(capsys.readouterr().err.split())
    expected = "is neither a checkpoint nor" if again == ("resume=run",) else f"pid {process.pid})"
    assert expected in told
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    process.kill()
    process.join()
    assert main([*words, "resume=auto"]) == 0
    shutil.rmtree("run")
