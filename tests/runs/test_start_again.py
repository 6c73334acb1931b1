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

from helpers.command import TINY, Run, said
from helpers.kills import killed_at
from helpers.rows import ANSWERS
from runner.__main__ import main
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


MORE = {"whole": (), "best": BEST, "plain": PLAIN, "cut": (), "cut-best": BEST, "cut-plain": PLAIN}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of ``MORE``, trained once; those of ``cut`` were killed behind their last step."""
    place = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        words = (*WORDS, *MORE[name])
        if (folder := place / name).exists():
            return folder
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            if name.startswith("cut"):
                killed_at("recipes.train:conclude", *words, folder=name)
            else:
                assert main([*words, f"output_dir={name}"]) == 0
        return folder

    return run


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file; the lock of a run that was killed is of no meaning."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def evaluations(run: Run) -> list[tuple[int, float]]:
    return [(line["step"], line["eval_loss"]) for line in run.lines("metrics.jsonl") if "eval_loss" in line]


def test_a_completed_run_does_nothing_and_says_so(cli, runs, capsys):
    shutil.copytree(runs("whole"), "run")
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 0
    assert "completed already" in said(capsys)
    assert tree(Path("run")) == before


def test_its_checkpoints_are_not_needed(cli, runs):
    shutil.copytree(runs("whole"), "run")
    shutil.rmtree("run/checkpoints")
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 0
    assert tree(Path("run")) == before


def test_a_report_that_is_not_there_is_made(cli, runs, monkeypatch):
    monkeypatch.setattr(
        "recipes.run.write_report", lambda folder: (folder / "report.html").write_text("made")
    )
    shutil.copytree(runs("whole"), "run")
    Path("run/report.html").unlink()
    assert cli(*WORDS, "resume=auto").code == 0
    assert Path("run/report.html").read_text() == "made"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("gone", [("adapter",), ("adapter", "checkpoints"), ("samples.jsonl",)], ids=str)
def test_a_result_that_is_gone_is_made_again(cli, runs, gone):
    shutil.copytree(runs("whole"), "run")
    for name in gone:
        shutil.rmtree(f"run/{name}") if Path(f"run/{name}").is_dir() else Path(f"run/{name}").unlink()
    run = cli(*WORDS, "resume=auto")
    assert (run.code, run.record["metrics"]["steps"]) == (0, 4)
    assert weights(run.folder) == weights(runs("whole"))
    assert evaluations(run) == evaluations(Run(0, runs("whole")))


def test_an_adapter_that_is_not_the_recorded_one_is_refused(cli, runs, capsys):
    shutil.copytree(runs("whole"), "run")
    Path("run/adapter/adapter_model.safetensors").write_bytes(b"other")
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 2
    assert "is not the one that run.json records" in said(capsys)
    assert tree(Path("run")) == before


@pytest.mark.parametrize("checkpoints", [True, False])
def test_more_steps_are_another_run(cli, runs, capsys, checkpoints):
    shutil.copytree(runs("whole"), "run")
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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["auto", "run", "checkpoint"])
def test_a_run_that_ended_behind_its_last_step_trains_no_further(cli, runs, how):
    shutil.copytree(runs("cut-plain"), "cut")
    where = {"auto": "auto", "run": "cut", "checkpoint": "cut/checkpoints/checkpoint-4"}[how]
    run = cli(*WORDS, *PLAIN, f"resume={where}", folder="cut" if how == "auto" else "run")
    assert (run.code, run.record["metrics"]["steps"]) == (0, 4)
    assert weights(run.folder) == weights(runs("plain"))


@pytest.mark.slow
def test_a_run_folder_that_was_moved_finds_its_best_checkpoint(cli, runs):
    """The library knows it by the place where it was written, and would keep the last one without a word."""
    assert weights(runs("best")) != weights(runs("whole")), "the last checkpoint is not the best"
    shutil.copytree(runs("cut-best"), "moved/run")
    run = cli(*WORDS, *BEST, "resume=auto", folder="moved/run")
    assert run.code == 0
    assert weights(run.folder) == weights(runs("best"))


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_is_trained_again(cli, runs, capsys):
    shutil.copytree(runs("cut-best"), "run")
    state = json.loads(Path("run/checkpoints/checkpoint-4/trainer_state.json").read_text())
    shutil.rmtree(best := Path("run/checkpoints") / Path(state["best_model_checkpoint"]).name)
    run = cli(*WORDS, *BEST, "resume=auto")
    assert f"names {best.name} as the best, which has no manifest.json" in said(capsys)
    assert weights(run.folder) == weights(runs("best"))


def test_the_newest_checkpoint_is_the_one_of_the_latest_step_whatever_the_clock_says(cli, runs):
    shutil.copytree(runs("cut"), "run")
    for path in Path("run/checkpoints").iterdir():
        os.utime(path, (2**31 - 10**8 * int(path.name.partition("-")[2]),) * 2)
    run = cli(*WORDS, "resume=auto")
    assert weights(run.folder) == weights(runs("whole"))


@pytest.mark.slow
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
    run, best = cli(*WORDS, *BEST, "resume=auto"), Run(0, runs("best"))
    assert evaluations(run) == evaluations(best)
    assert weights(run.folder) == weights(best.folder)


@pytest.mark.slow
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
    assert weights(run.folder) == weights(runs("whole"))


@pytest.mark.slow
def test_checkpoints_without_optimizer_are_enough_behind_the_last_step_only(cli, capsys):
    words = (*WORDS, "trainer.save_only_model=true")
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
    shutil.copytree(runs("cut"), "run")
    DAMAGE[reason](Path("run"))
    before = tree(Path("run"))
    assert cli(*WORDS, "resume=auto").code == 2
    assert reason.replace("yaml is", "yaml: is") in said(capsys)
    assert tree(Path("run")) == before


def test_without_its_run_a_checkpoint_is_refused(cli, runs, capsys):
    shutil.copytree(runs("cut") / "checkpoints/checkpoint-4", "alone/checkpoints/checkpoint-4")
    assert cli(*WORDS, "resume=alone/checkpoints/checkpoint-4").code == 2
    assert "alone/config.yaml: is missing" in said(capsys)  # it may have been trained with another config
    assert not Path("run").exists()


def test_an_adapter_that_changed_is_refused_when_its_child_resumes(cli, parent, capsys):
    start = parent(*TINY, "trainer.learning_rate=1e-2")
    words = (*(word for word in WORDS if "dropout" not in word), "adapter=start")
    killed_at("recipes.train:conclude", *words)
    cli(*TINY, "trainer.learning_rate=2e-2", folder="other")
    shutil.rmtree(start.folder)
    shutil.copytree("other", start.folder)
    assert cli(*words, "resume=auto").code == 2
    assert "the adapter it starts from is not the one" in said(capsys)
