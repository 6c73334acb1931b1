"""Output folders that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY, said


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["below a file", "a file", "too long", "read-only", "made by nobody"])
@pytest.mark.parametrize(
    "words", [(), ("resume=auto",), ("-m", "lora.r=2,4")], ids=["run", "resume", "sweep"]
)
def test_an_output_folder_that_cannot_be_written_is_named(cli, monkeypatch, capsys, kind, words):
    Path("file").write_text("kept")
    Path("there").mkdir()
    folder = {"below a file": "file/run", "a file": "file", "too long": "x" * 300, "read-only": "there"}.get(
        kind, "/proc/run"
    )
    if kind == "read-only":  # for root no folder is

        def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if "there" in str(path) and flags & os.O_CREAT:
                raise PermissionError(13, "Permission denied")
            return opened(path, flags, *args, **kwargs)

        opened = os.open
        monkeypatch.setattr("runner.core.process.folder_lock.os.open", refuse)
    assert cli(*words, *TINY, folder=folder).code == 2
    told = said(capsys)
    assert folder[:40] in told.replace(" ", "")
    assert "config error" in told
    assert "Traceback" not in told
    assert Path("file").read_text() == "kept"
