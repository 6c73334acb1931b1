"""The same command again, in the folder that an earlier start has left: what it does, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command import TINY, Run
from helpers.kills import Point, strike
from helpers.rows import ANSWERS
from runner.__main__ import main
from runner.runs.parents import find_parent
from runner.training.evaluating import EvaluatingTrainer
from runner.training.sft import GuardedSFTTrainer
from runner.training.trainer import GuardedTrainer

WORDS = (
    *TINY,
    *ANSWERS,
    "data.max_rows=10",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "trainer.max_steps=4",
    "trainer.save_strategy=steps",
    "trainer.save_steps=1",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=1",
    "trainer.learning_rate=5e-2",
    "lora.lora_dropout=0.1",
    "generation.samples=1",
    "data.metric=null",
)
# With accumulation the library's loop ends within the surplus step, before the optimizer's.
PLAIN = ("trainer.gradient_accumulation_steps=1",)
BEST = ("trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=eval_loss")


class Killed(BaseException):
    """What no handler of errors sees, as it would not see SIGKILL."""


def killed_at(place: str, *words: str, folder: str = "run", call: int = 1) -> None:
    """Run a command until a place is reached."""

    def end() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        strike(Point(place, call), end, patch.setattr)
        with pytest.raises(Killed):
            main([*words, f"output_dir={folder}"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``whole``, and with ``cut``, the same killed behind its last step."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(
            "runner.reports.run_report.write_report", lambda folder: (folder / "report.html").touch()
        )
        for name, more in (("whole", ()), ("best", BEST), ("plain", PLAIN)):
            assert main([*WORDS, *more, f"output_dir={name}"]) == 0
        for name, more in (("cut", ()), ("cut-best", BEST), ("cut-plain", PLAIN)):
            killed_at("recipes.train:conclude", *WORDS, *more, folder=name)
    return place


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file; the lock of a run that was killed is of no meaning."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def evaluations(run: Run) -> list[tuple[int, float]]:
    return [(line["step"], line["eval_loss"]) for line in run.lines("metrics.jsonl") if "eval_loss" in line]


def said(capsys: Any) -> str:
    return " ".join("".join(capsys.readouterr()).split())


# --- a run that has completed


def test_a_completed_run_does_nothing_and_says_so(cli, runs, capsys):
    shutil.copytree(runs / "whole", "run")
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 0
    assert "completed already" in said(capsys)
    assert tree(Path("run")) == before


def test_its_checkpoints_are_not_needed(cli, runs):
    shutil.copytree(runs / "whole", "run")
    shutil.rmtree("run/checkpoints")
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 0
    assert tree(Path("run")) == before


def test_a_report_that_is_not_there_is_made(cli, runs, monkeypatch):
    monkeypatch.setattr(
        "recipes.run.write_report", lambda folder: (folder / "report.html").write_text("made")
    )
    shutil.copytree(runs / "whole", "run")
    Path("run/report.html").unlink()
    assert cli(*WORDS, "resume=auto").code == 0
    assert Path("run/report.html").read_text() == "made"


@pytest.mark.parametrize("gone", [("adapter",), ("adapter", "checkpoints"), ("samples.jsonl",)], ids=str)
def test_a_result_that_is_gone_is_made_again(cli, runs, gone):
    shutil.copytree(runs / "whole", "run")
    for name in gone:
        shutil.rmtree(f"run/{name}") if Path(f"run/{name}").is_dir() else Path(f"run/{name}").unlink()
    run = cli(*WORDS, "resume=auto")
    assert (run.code, run.record["metrics"]["steps"]) == (0, 4)
    assert weights(run.folder) == weights(runs / "whole")
    assert evaluations(run) == evaluations(Run(0, runs / "whole"))


def test_an_adapter_that_is_not_the_recorded_one_is_refused(cli, runs, capsys):
    shutil.copytree(runs / "whole", "run")
    Path("run/adapter/adapter_model.safetensors").write_bytes(b"other")
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 2
    assert "is not the one that run.json records" in said(capsys)
    assert tree(Path("run")) == before


@pytest.mark.parametrize("checkpoints", [True, False])
def test_more_steps_are_another_run(cli, runs, capsys, checkpoints):
    shutil.copytree(runs / "whole", "run")
    if not checkpoints:
        shutil.rmtree("run/checkpoints")
    before = tree(Path("run"))
    assert cli(*WORDS, "trainer.max_steps=6", "resume=auto").code == 2
    assert "trainer.max_steps: was 4" in said(capsys)
    assert tree(Path("run")) == before


def test_other_rows_are_refused(cli, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    text = "".join(json.dumps({"prompt": f"{n}?", "completion": f"It is {n}."}) + "\n" for n in range(12))
    rows.write_text(text)
    words = (*TINY, "data=file", f"data.path={rows}", "trainer.max_steps=1", "generation.samples=0")
    assert cli(*words).code == 0
    before = tree(Path("run"))
    rows.write_text(text.replace("It is 3.", "It is 4."))
    assert cli(*words, "resume=auto").code == 2
    assert "the training rows are not those of run" in said(capsys)
    assert tree(Path("run")) == before


# --- a run that was ended


@pytest.mark.parametrize("how", ["auto", "run", "checkpoint"])
def test_a_run_that_ended_behind_its_last_step_trains_no_further(cli, runs, how):
    shutil.copytree(runs / "cut-plain", "cut")
    where = {"auto": "auto", "run": "cut", "checkpoint": "cut/checkpoints/checkpoint-4"}[how]
    run = cli(*WORDS, *PLAIN, f"resume={where}", folder="cut" if how == "auto" else "run")
    assert (run.code, run.record["metrics"]["steps"]) == (0, 4)
    assert weights(run.folder) == weights(runs / "plain")


def test_a_run_folder_that_was_moved_finds_its_best_checkpoint(cli, runs):
    """The library knows it by the place where it was written, and would keep the last one without a word."""
    assert weights(runs / "best") != weights(runs / "whole"), "the last checkpoint is not the best"
    shutil.copytree(runs / "cut-best", "moved/run")
    run = cli(*WORDS, *BEST, "resume=auto", folder="moved/run")
    assert run.code == 0
    assert weights(run.folder) == weights(runs / "best")


def test_a_best_checkpoint_that_is_gone_is_trained_again(cli, runs, capsys):
    shutil.copytree(runs / "cut-best", "run")
    state = json.loads(Path("run/checkpoints/checkpoint-4/trainer_state.json").read_text())
    best = Path("run/checkpoints") / Path(state["best_model_checkpoint"]).name
    shutil.rmtree(best)
    run = cli(*WORDS, *BEST, "resume=auto")
    assert f"names {best.name} as the best, which has no manifest.json" in said(capsys)
    assert weights(run.folder) == weights(runs / "best")


def test_the_newest_checkpoint_is_the_one_of_the_latest_step_whatever_the_clock_says(cli, runs):
    shutil.copytree(runs / "cut", "run")
    for path in Path("run/checkpoints").iterdir():
        os.utime(path, (2**31 - 10**8 * int(path.name.partition("-")[2]),) * 2)
    run = cli(*WORDS, "resume=auto")
    assert weights(run.folder) == weights(runs / "whole")


@pytest.mark.parametrize("step", [2, 3, 4])
def test_an_evaluation_that_a_signal_put_off_is_made_up_for(cli, runs, monkeypatch, step):
    """Between two steps at most a checkpoint is waited for; but the best checkpoint hangs on each score."""
    training_step = GuardedTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedTrainer, "training_step", signalled)
        cut = cli(*WORDS, *BEST)
    assert cut.code == 75
    assert [at for at, _ in evaluations(cut)] == list(range(1, step))
    run, best = cli(*WORDS, *BEST, "resume=auto"), Run(0, runs / "best")
    assert evaluations(run) == evaluations(best)
    assert weights(run.folder) == weights(best.folder)


def test_a_signal_during_an_evaluation_leaves_a_checkpoint_too(cli, runs, monkeypatch):
    evaluate = EvaluatingTrainer.evaluate
    words = [word for word in WORDS if "save_" not in word]

    def signalled(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluatingTrainer, "evaluate", signalled)
        cut = cli(*words, "trainer.save_strategy=no")
    assert cut.code == 75
    assert (cut.folder / "checkpoints/checkpoint-1/optimizer.pt").is_file()
    run = cli(*words, "trainer.save_strategy=no", "resume=auto")
    assert weights(run.folder) == weights(runs / "whole")


@pytest.mark.slow
def test_checkpoints_without_optimizer_are_enough_behind_the_last_step_only(cli, capsys):
    words, whole = (*WORDS, "trainer.save_only_model=true"), None
    whole = cli(*words, folder="whole")
    for place, call in (("training_step", 6), ("evaluate", 5)):
        killed_at(f"runner.training.trainer:GuardedTrainer.{place}", *words, folder=place, call=call)
        run = cli(*words, "resume=auto", folder=place)
        assert ("without the optimizer's state" in said(capsys)) == (place == "training_step")
        assert weights(run.folder) == weights(whole.folder)
        assert evaluations(run) == evaluations(whole)


@pytest.mark.slow
def test_a_run_whose_batches_shrank_ends_alike(cli, monkeypatch):
    compute = GuardedSFTTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 1 and self.model.training and self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(GuardedSFTTrainer, "compute_loss", compute_loss)
    words = (*WORDS, "on_oom=shrink")
    whole = cli(*words, folder="whole")
    assert "out of memory in step 4" in " ".join(whole.record["notes"])
    killed_at("recipes.train:conclude", *words)
    run = cli(*words, "resume=auto")
    assert weights(run.folder) == weights(whole.folder)
    assert evaluations(run) == evaluations(whole)


# --- records that are damaged

DAMAGE: dict[str, Callable[[Path], Any]] = {
    "config.yaml is missing": lambda run: (run / "config.yaml").unlink(),
    "config.yaml: is damaged": lambda run: (run / "config.yaml").write_text("lora: [\x00"),
    "config.yaml: is damaged: it holds no config": lambda run: (run / "config.yaml").write_text("- 1"),
    "run.json: is missing": lambda run: (run / "run.json").unlink(),
    "run.json: is damaged": lambda run: (run / "run.json").write_text('{"status": "run'),
    "run.json: holds no record": lambda run: (run / "run.json").write_text("[]"),
    "metrics.jsonl: is missing": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl: has 1 of": lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n'),
    "metrics.jsonl: is damaged": lambda run: (run / "metrics.jsonl").write_bytes(b"{\xff\n" * 9),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_record_that_is_missing_or_damaged_is_named(cli, runs, capsys, reason):
    shutil.copytree(runs / "cut", "run")
    DAMAGE[reason](Path("run"))
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 2
    assert reason.replace("yaml is", "yaml: is") in said(capsys)
    assert tree(Path("run")) == before


def test_without_its_run_a_checkpoint_is_refused(cli, runs, capsys):
    """Whether it was trained with this config cannot be known."""
    shutil.copytree(runs / "cut/checkpoints/checkpoint-4", "alone/checkpoints/checkpoint-4")
    assert cli(*WORDS, "resume=alone/checkpoints/checkpoint-4").code == 2
    assert "alone/config.yaml: is missing" in said(capsys)
    assert not Path("run").exists()


# --- output folders that cannot be


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
    assert cli(*words, *WORDS, folder=folder).code == 2
    told = said(capsys)
    assert folder[:40] in told.replace(" ", "")
    assert "config error" in told
    assert "Traceback" not in told
    assert Path("file").read_text() == "kept"


# --- what a run was made from, and its repetition


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


def test_an_adapter_that_changed_is_refused_when_its_child_resumes(cli, parent, capsys):
    start = parent(*TINY, "trainer.learning_rate=1e-2")
    words = (*(word for word in WORDS if "dropout" not in word), "adapter=start")
    killed_at("recipes.train:conclude", *words)
    cli(*TINY, "trainer.learning_rate=2e-2", folder="other")
    shutil.rmtree(start.folder)
    shutil.copytree("other", start.folder)
    assert cli(*words, "resume=auto").code == 2
    assert "the adapter it starts from is not the one" in said(capsys)


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
