"""Rows 27 to 31: however a run is ended, it resumes to the bytes of an undisturbed one, or says why not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY, Run
from helpers.packs import run_pack
from helpers.rows import ANSWERS
from helpers.starts import assert_adds_up, kill_while_saving, slow_start, start
from runner.__main__ import main
from runner.core.signals import Preempted
from runner.packed.trainer import PackedTrainer
from runner.runs import checkpoint
from runner.training.sft import GuardedSFTTrainer

# Uneven windows (5 batches in windows of 2), epochs, dropout, lines of three steps, saves between them.
WORDS = (
    *TINY,
    *ANSWERS,
    "trainer.max_steps=-1",
    "data.max_rows=10",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.save_strategy=steps",
    "trainer.save_steps=1",
    "trainer.logging_steps=3",
    "lora.lora_dropout=0.1",
    "generation.samples=0",
    "data.metric=null",
)
GRID = [("lora.r=4",), ("lora.r=8", "seed=3"), ("lora.r=2", "trainer.learning_rate=1e-3")]
TIMES = ("seconds", "_runtime", "_per_second")


def of(run: Run) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    """What an interrupted run must share with an undisturbed one: weights, logged figures, results."""
    weights = (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    lines = [
        {key: value for key, value in line.items() if not key.endswith(TIMES)}
        for line in run.lines("metrics.jsonl")
        if "train_loss" not in line
    ]
    results = {name: run.record["metrics"][name] for name in ("train_loss", "tokens", "steps", "eval_loss")}
    return weights, lines, results


def signalled(patch: pytest.MonkeyPatch, kind: type, number: int, step: int) -> None:
    """Send this process a signal from within an optimizer step."""
    training_step = kind.training_step

    def wrapped(self, *args, **kwargs):
        if self.state.global_step == step - 1 and self._passes != (step - 1, 0):
            os.kill(os.getpid(), number)
        return training_step(self, *args, **kwargs)

    patch.setattr(kind, "training_step", wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["solo", "pack"])
def test_27_twenty_kills_while_saving(cli, tmp_path, kind):
    """Each start is killed in a save; each must have resumed from what the kills before it left."""
    words = (*WORDS, "trainer.num_train_epochs=9")
    if kind == "solo":
        whole, target = [cli(*words, folder="whole")], (main, [*words, "output_dir=cut", "resume=auto"])
        work = tmp_path / "cut"
    else:
        whole = run_pack(tmp_path / "whole", words, GRID, checkpoint_seconds=0.0)
        target, work = (packed, str(tmp_path / "cut"), words), tmp_path / "cut" / "work"
    kills, last = 0, 0
    for _ in range(200):
        process = start(target[0], tmp_path, *target[1:])
        if not kill_while_saving(process, work / "checkpoints" / checkpoint.TEMPORARY, 0.03):
            assert process.exitcode == 0, (tmp_path / "out.log").read_text()[-3000:]
            break
        found = checkpoint.newest(work / "checkpoints")
        assert checkpoint.step_of(found) >= last
        kills, last = kills + 1, checkpoint.step_of(found)
        if kills == 20:
            process = start(target[0], tmp_path, *target[1:])
            process.join()
            assert process.exitcode == 0, (tmp_path / "out.log").read_text()[-3000:]
            break
    assert kills == 20
    folders = [work] if kind == "solo" else [tmp_path / "cut" / str(number) for number in range(len(GRID))]
    for undisturbed, folder in zip(whole, folders, strict=True):
        assert of(Run(0, folder)) == of(undisturbed)
    print(f"{kind}: {kills} kills, {kills} resumes")


def packed(folder: str, words: tuple[str, ...]) -> None:
    run_pack(Path(folder), words, GRID, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an undisturbed run ``whole``, and ``cut``, which was ended by SIGTERM in step 4 of 6."""
    place = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = (*WORDS, "trainer.num_train_epochs=2")
        assert main([*words, "output_dir=whole"]) == 0
        signalled(patch, GuardedSFTTrainer, signal.SIGTERM, 4)
        assert main([*words, "output_dir=cut"]) == 75
    return place


def go_on(cli, saved: Path, *more: str, resume: str = "auto") -> tuple[Run, Run]:
    """Copy the interrupted run, change it with ``more``, resume it; with the undisturbed one."""
    if not Path("run").exists():
        shutil.copytree(saved / "cut", "run")
    run = cli(*WORDS, "trainer.num_train_epochs=2", f"resume={resume}", *more)
    return run, Run(0, saved / "whole")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "truncated": (lambda path: os.truncate(path / "optimizer.pt", 1000), "optimizer.pt has 1,000 of"),
    "missing": (lambda path: (path / "scheduler.pt").unlink(), "lacks scheduler.pt"),
    "flipped": (
        lambda path: flip(path / "adapter_model.safetensors"),
        "adapter_model.safetensors is damaged",
    ),
    "foreign": (lambda path: (path / "model.bin").write_bytes(b"x"), "holds model.bin"),
    "unfinished": (lambda path: (path / "manifest.json").unlink(), "has no manifest.json"),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", DAMAGE)
def test_28_a_damaged_checkpoint_is_passed_over(cli, saved, capsys, kind):
    shutil.copytree(saved / "cut", "run")
    damage, reason = DAMAGE[kind]
    damage(Path("run/checkpoints/checkpoint-4"))
    run, whole = go_on(cli, saved)
    assert run.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (reason, "checkpoint-3 is used instead"):
        assert text in said
        assert any(text in note for note in run.record["notes"])
    assert of(run) == of(whole)


def test_28_without_an_intact_checkpoint_training_begins_anew(cli, saved, capsys):
    shutil.copytree(saved / "cut", "run")
    for path in Path("run/checkpoints").iterdir():
        flip(path / "optimizer.pt")
    run, whole = go_on(cli, saved)
    assert "training starts from the beginning" in " ".join(capsys.readouterr().out.split())
    assert of(run) == of(whole)


def test_28_a_damaged_checkpoint_that_is_named_is_refused(cli, saved, capsys):
    shutil.copytree(saved / "cut", "old")
    flip(Path("old/checkpoints/checkpoint-4/optimizer.pt"))
    run, _ = go_on(cli, saved, resume="old/checkpoints/checkpoint-4")
    said = " ".join(capsys.readouterr().err.split())
    assert run.code == 2
    assert "optimizer.pt is damaged" in said
    assert "old/checkpoints/checkpoint-3" in said


@pytest.mark.slow
def test_28_a_damaged_checkpoint_of_a_pack_is_passed_over(tmp_path, monkeypatch, capsys):
    words = (*WORDS, "trainer.num_train_epochs=2")
    whole = run_pack(tmp_path / "whole", words, GRID)
    with monkeypatch.context() as patch:
        signalled(patch, PackedTrainer, signal.SIGTERM, 5)
        with pytest.raises(Preempted):
            handled_pack(tmp_path / "cut", words)
    flip(tmp_path / "cut/work/checkpoints/checkpoint-5/pack.safetensors")
    for one, other in zip(run_pack(tmp_path / "cut", words, GRID), whole, strict=True):
        assert any("pack.safetensors is damaged" in note for note in one.record["notes"])
        assert of(one) == of(other)
    assert "pack.safetensors is damaged" in " ".join(capsys.readouterr().out.split())


def handled_pack(folder: Path, words: tuple[str, ...]) -> None:
    from runner.core import signals

    with signals.signal_handlers():
        run_pack(folder, words, GRID, checkpoint_seconds=0.0)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_29_a_signal_leaves_an_exact_checkpoint(cli, monkeypatch, capsys, number):
    """Also where no checkpoint would be due for long."""
    without = [word for word in WORDS if "save_" not in word]
    words = (*without, "trainer.num_train_epochs=2", "trainer.save_strategy=no")
    whole = cli(*words, folder="whole")
    with monkeypatch.context() as patch:
        signalled(patch, GuardedSFTTrainer, number, 4)
        cut = cli(*words)
    assert (cut.code, cut.record["status"]) == (75, "preempted")
    assert f"ended by {signal.Signals(number).name} after step 4" in cut.record["error"]["message"]
    assert "resume=auto" in capsys.readouterr().err
    assert not (cut.folder / "adapter").exists()
    slow_start(cut.folder)
    resumed = cli(*words, "resume=auto")
    assert of(resumed) == of(whole)
    assert_adds_up(resumed)


def test_29_a_second_signal_ends_at_once(cli, monkeypatch):
    step = GuardedSFTTrainer.training_step

    def twice(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GuardedSFTTrainer, "training_step", twice)
    run = cli(*WORDS)
    assert (run.code, run.record["status"]) == (75, "preempted")
    assert checkpoint.newest(run.folder / "checkpoints") is None


def test_29_a_signal_outside_of_training_is_preempted_too(cli, monkeypatch):
    from runner.evaluation.generate import HeldOutGenerator

    monkeypatch.setattr(
        HeldOutGenerator, "answer", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT)
    )
    run = cli(*TINY)
    assert (run.code, run.record["status"]) == (75, "preempted")


@pytest.mark.slow
def test_29_a_signal_ends_a_pack_with_an_exact_checkpoint(tmp_path, monkeypatch):
    words = (*WORDS, "trainer.num_train_epochs=2")
    whole = run_pack(tmp_path / "whole", words, GRID)
    with monkeypatch.context() as patch:
        signalled(patch, PackedTrainer, signal.SIGTERM, 4)
        with pytest.raises(Preempted, match="after step 4"):
            handled_pack(tmp_path / "cut", words)
    for number in range(len(GRID)):
        slow_start(tmp_path / "cut" / str(number))
    for one, other in zip(run_pack(tmp_path / "cut", words, GRID), whole, strict=True):
        assert of(one) == of(other)
        assert_adds_up(one)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "change",
    ["trainer.learning_rate=1e-3", "lora.lora_alpha=64", "data.max_rows=9", "training rows", "held-out rows"],
)
def test_30_a_changed_config_or_file_is_refused_with_the_difference(
    cli, tmp_path, monkeypatch, capsys, change
):
    rows, held_out = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    text = "".join(json.dumps({"prompt": f"{n}?", "completion": f"It is {n}."}) + "\n" for n in range(12))
    rows.write_text(text)
    held_out.write_text(text.replace("?", "!"))
    files = {"training rows": rows, "held-out rows": held_out}
    words = (*WORDS, f"data.path={rows}", f"data.eval_path={held_out}")
    with monkeypatch.context() as patch:
        signalled(patch, GuardedSFTTrainer, signal.SIGTERM, 1)
        assert cli(*words).code == 75
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    if change in files:
        files[change].write_text(files[change].read_text().replace("It is", "It was"))
    refused = cli(*words, "resume=auto", *([change] if change not in files else []))
    said = " ".join(capsys.readouterr().err.split())
    assert refused.code == 2
    assert (f"the {change} are not those" if change in files else change.partition("=")[0]) in said
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_31_a_used_folder_is_refused(cli, capsys):
    first = cli(*WORDS, "trainer.max_steps=1")
    before = (first.folder / "run.json").read_bytes()
    assert cli(*WORDS, "trainer.max_steps=1").code == 2
    assert "a run needs a folder of its own" in capsys.readouterr().err
    assert (first.folder / "run.json").read_bytes() == before
