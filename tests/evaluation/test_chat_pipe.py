"""A reader that goes away (``| head -1``) ends a chat and a printed config quietly, as Unix tools do."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runner.core import console

CHAT = ("recipe=chat", "model=tiny", "chat.max_new_tokens=6")


@contextmanager
def pipe() -> Iterator[int]:
    """Stdout is a pipe; this is its reader's end, which a test closes. No fixture: pytest captures later."""
    (reader, writer), before = os.pipe(), sys.stdout
    try:
        with open(writer, "w") as sys.stdout:
            yield reader  # closing stdout writes its buffer, as Python's end does
    finally:
        sys.stdout, console.out.quiet = before, False


class Typed(io.StringIO):
    """Lines on stdin; before the second one the reader of stdout goes away."""

    def __init__(self, reader: int, *lines: str) -> None:
        super().__init__("".join(f"{line}\n" for line in lines))
        self._reader, self._read = reader, 0

    def readline(self, size: int = -1) -> str:
        self._read += 1
        if self._read == 2:
            os.close(self._reader)
        return super().readline(size)


def test_an_answer_that_nobody_reads_is_no_failure(cli, capfd):
    with pipe() as reader:
        os.close(reader)
        run = cli(*CHAT, "prompt=hello")
    assert run.code == 0
    assert run.record["status"] == "completed"
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "run/report.html" in said  # what it says on stderr is still read


def test_a_conversation_ends_with_its_reader_and_is_kept(cli, monkeypatch):
    with pipe() as reader:
        monkeypatch.setattr(sys, "stdin", Typed(reader, "hello", "and now?", "never asked"))
        run = cli(*CHAT)
    assert run.code == 0
    (row,) = run.lines("conversation.jsonl")
    assert [each["content"] for each in row["messages"] if each["role"] == "user"] == ["hello", "and now?"]


def test_nothing_more_is_answered_after_a_list_that_nobody_reads(cli, monkeypatch):
    with pipe() as reader:
        os.close(reader)
        monkeypatch.setattr(sys, "stdin", io.StringIO("/help\nhello\n"))
        run = cli(*CHAT)
    assert run.code == 0
    assert run.record["status"] == "completed"
    assert not (run.folder / "conversation.jsonl").exists()


@pytest.mark.sampled(3)
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGPIPE")
@pytest.mark.parametrize("flags", [("--help",), ("--cfg", "job"), ("--hydra-help",), ("--info", "all")])
def test_a_printed_config_that_nobody_reads_ends_in_silence(flags):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "runner", *flags]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == -13  # SIGPIPE, as of git log | head
    assert done.stderr == ""
