"""What a run was made from, and its repetition with other rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.command import TINY, Run, said
from runner.runs.parents import find_parent


@pytest.mark.slow
def test_a_repetition_with_other_rows_and_another_result_says_so(cli, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    text = "".join(json.dumps({"prompt": f"{n}?", "completion": f"It is {n}."}) + "\n" for n in range(12))
    rows.write_text(text)
    cli(*TINY, "data=file", f"data.path={rows}", "trainer.learning_rate=1e-2", folder="first")
    capsys.readouterr()
    again = ("--config-path", "first", "--config-name", "config")
    equal = cli(*again, folder="equal")
    assert (equal.code, equal.record["notes"]) == (0, Run(0, Path("first")).record["notes"])
    rows.write_text(text.replace("It is 3.", "It is 4."))
    other = cli(*again, folder="other")
    assert other.code == 0
    told = said(capsys)
    for words in ("the training rows are not those of", "another result than in", "has other weights"):
        assert words in told
        assert any(words in note for note in other.record["notes"])
    changed = cli(*again, "trainer.learning_rate=2e-2", folder="changed")
    assert not any("another result" in note for note in changed.record["notes"])


def test_parents_are_known_by_their_digest_and_found_where_they_were_moved(cli, parent):
    parent(*TINY)
    run = cli(*TINY, "trainer.max_steps=1", "adapter=start", folder="child")
    (entry,) = run.record["parents"]
    assert entry["digest"].startswith("sha256:")
    assert find_parent(entry, run.folder) == Path("start")
    Path("moved").mkdir()
    for name in ("start", "child"):
        shutil.move(name, f"moved/{name}")
    found = find_parent(entry, Path("moved/child"))
    assert found is not None
    assert found.resolve() == Path("moved/start").resolve()
    Path("moved/start/adapter/adapter_model.safetensors").write_bytes(b"other")
    assert find_parent(entry, Path("moved/child")) is None
