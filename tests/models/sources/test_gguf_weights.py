"""Finding a model in a GGUF file, which is converted once."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from asked import assert_same_model, refusal

from helpers.paths import ROOT
from helpers.tiny_gguf import write_gguf
from runner.models.conversion.once import convert_once
from runner.models.locate import find_model

pytestmark = pytest.mark.slow


def test_a_gguf_file_is_converted_to_the_same_model(tiny_gguf, cache):
    found = find_model(str(tiny_gguf))
    assert_same_model(found.folder, tiny_gguf)
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert found.folder == cache / "models" / f"tiny-{digest[:12]}"
    assert found.revision == found.folder.name
    assert [entry.name for entry in cache.glob("models/*") if entry.is_dir()] == [found.folder.name]
    assert str(tiny_gguf.parent) not in (found.folder / "config.json").read_text()


def test_a_converted_folder_is_as_readable_as_any_new_one(tiny_gguf, tmp_path):
    before = os.umask(0o022)
    try:
        folder = find_model(str(tiny_gguf)).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "generation_config.json").unlink(),
        lambda folder: (folder / "pytorch_model.bin").touch(),
    ],
    ids=["weights", "tokenizer", "missing", "more"],
)
def test_a_damaged_conversion_is_made_again(tiny_gguf, damage):
    first = find_model(str(tiny_gguf))
    assert find_model(str(tiny_gguf)) == first
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    damage(first.folder)
    again = find_model(str(tiny_gguf))
    assert "was damaged, and has been converted anew" in again.notes[0]
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == before
    assert find_model(str(tiny_gguf)).notes == ()


@pytest.mark.parametrize("kept", [0, 3, 200, 5000, -5000, -1])
def test_a_truncated_gguf_is_refused(tiny_gguf, tmp_path, cache, kept):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:kept])
    message = refusal(str(broken))
    assert "broken.gguf cannot be converted" in message
    assert not [entry for entry in cache.glob("models/*") if entry.is_dir()]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"skip": ["blk.1.ffn_up"]}, "1 tensors are missing, among them model.layers.1.mlp.up_proj.weight"),
        ({"poison": True}, "tensors are not finite"),
    ],
)
def test_a_gguf_that_would_load_with_wrong_weights_is_refused(tmp_path, damage, said):
    assert said in refusal(str(write_gguf(tmp_path / "wrong.gguf", **damage)))


def test_a_text_file_called_gguf_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    assert "x.gguf cannot be converted" in refusal(str(tmp_path / "x.gguf"))


# A conversion that takes as long as it is told, and leaves what a real one leaves half-way.
SLOW_CONVERSION = """
    import sys, time
    from pathlib import Path
    from runner.models.conversion.once import convert_once

    def convert(folder, scratch):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with open(sys.argv[2], "a") as log:
            log.write("begun\\n")
        time.sleep(float(sys.argv[3]))
        (folder / "model.safetensors").write_text("weights")

    print(convert_once(Path(sys.argv[1]), convert))
"""


def start_conversion(target, log, seconds):
    arguments = [sys.executable, "-c", textwrap.dedent(SLOW_CONVERSION), target, log, seconds]
    return subprocess.Popen([str(part) for part in arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(file):
    deadline = time.monotonic() + 20
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert file.exists()


def test_a_killed_conversion_counts_for_nothing_and_is_cleared_away(tmp_path):
    target, log = tmp_path / "models" / "tiny-abc", tmp_path / "log"
    process = start_conversion(target, log, 60)
    wait_for(log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert list(target.parent.glob(".tiny-abc-*/model/config.json"))
    other = target.parent / ".tiny-abcd-99"  # another model's, perhaps in work
    other.mkdir()
    again = start_conversion(target, log, 0)
    assert again.wait(timeout=20) == 0
    assert sorted(file.name for file in target.iterdir()) == ["config.json", "model.safetensors"]
    assert {entry.name for entry in target.parent.iterdir() if entry.is_dir()} == {"tiny-abc", other.name}


def test_two_processes_at_once_convert_once_and_both_succeed(tmp_path):
    target, log = tmp_path / "models" / "tiny-abc", tmp_path / "log"
    both = [start_conversion(target, log, 0.7) for _ in range(2)]
    assert [process.communicate(timeout=20)[0].strip() for process in both] == [str(target)] * 2
    assert log.read_text() == "begun\n"


def test_a_failed_conversion_leaves_nothing(tmp_path):
    def fail(folder, scratch):
        (scratch / "m.gguf").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_once(tmp_path / "models" / "m", fail)
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == [".m.lock"]
