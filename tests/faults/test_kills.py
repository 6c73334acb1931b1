"""Row 27: a run that is killed anywhere and started again has the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.command import TINY, Run
from helpers.kills import PHASES, SAVES, SFT, Point, call, command, finished, killed, log, results, strike
from helpers.packs import run_pack
from helpers.paths import ROOT
from helpers.rows import PAIRS
from helpers.starts import start
from runner.__main__ import main

# Steps that end inside an epoch (of 3), and epochs with a part of one, which are measured at their ends.
KINDS = {
    "steps": (*SFT, "trainer.max_steps=5", "trainer.eval_strategy=steps", "trainer.eval_steps=2"),
    "epochs": (
        *SFT,
        "trainer.max_steps=-1",
        "trainer.num_train_epochs=1.5",
        "trainer.eval_strategy=epoch",
        "trainer.logging_strategy=epoch",
        "trainer.neftune_noise_alpha=5",
    ),
    "best": (
        *SFT,
        "trainer.max_steps=5",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
        "trainer.load_best_model_at_end=true",
        "trainer.metric_for_best_model=eval_loss",
        "trainer.save_total_limit=2",
    ),
    "weights": (*SFT, "trainer.max_steps=4", "trainer.save_only_model=true"),
    "dpo": (
        "recipe=dpo",
        *TINY,
        *PAIRS,
        *SAVES,
        "trainer.max_steps=4",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=3",
    ),
}


class Killed(BaseException):
    """In the place of SIGKILL, where a test cannot spare a process."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run of a kind leaves when nothing happens to it; each is trained once."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}

    def of(words: tuple[str, ...]) -> dict[str, Any]:
        if words not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert main([*words, f"output_dir={folder}"]) == 0
            found[words] = results(folder)
        return found[words]

    return of


FAST = ["prepare", "load", "score before", "train", "checkpoint", "save", "score after", "report"]


@pytest.mark.parametrize("phase", FAST)
@pytest.mark.slow
def test_27_a_run_that_ends_in_any_phase_resumes_exactly(cli, undisturbed, monkeypatch, phase):
    """Without a process of its own: nothing that catches errors sees the end of the run."""
    point = PHASES[phase][-2 if phase == "report" else -1]

    def end() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        strike(point, end, patch.setattr)
        with pytest.raises(Killed):
            cli(*KINDS["steps"])
    run = cli(*KINDS["steps"], "resume=auto")
    assert run.code == 0
    assert results(run.folder) == undisturbed(KINDS["steps"])


ALL = [(phase, point) for phase, points in PHASES.items() for point in points]
# Every place with steps; of the other kinds each has every third place, so that one of them has it too.
CASES = [
    pytest.param(kind, point, id=f"{kind}-{phase}-{point}")
    for order, kind in enumerate(KINDS)
    for number, (phase, point) in enumerate(ALL)
    if not order or (number + order) % 3 == 0
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "point"), CASES)
def test_27_kill_9_in_every_phase(tmp_path, undisturbed, kind, point):
    words = (*KINDS[kind], "output_dir=run", "resume=auto")
    if kind == "weights" and "evaluate" in point.place:
        point = Point(point.place, 1)  # it is measured at its end only
    killed(tmp_path, words, point)
    finished(tmp_path, words)
    assert results(tmp_path / "run") == undisturbed(KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["steps", "epochs", "dpo"])
def test_27_kill_9_at_random_times_again_and_again(tmp_path, undisturbed, kind):
    """Whatever the kills before have left, until the run gets through; ten kills in all."""
    words, kills, drawn = (*KINDS[kind], "output_dir=run", "resume=auto"), 0, random.Random(kind)
    while kills < 10:
        process = start(command, tmp_path, words)
        process.join(drawn.uniform(0.1, 1.5))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0, log(tmp_path)
            assert results(tmp_path / "run") == undisturbed(KINDS[kind])
            shutil.rmtree(tmp_path / "run")
    finished(tmp_path, words)
    assert results(tmp_path / "run") == undisturbed(KINDS[kind])


# --- packs

GRID = [("lora.r=4",), ("lora.r=8", "trainer.learning_rate=1e-3")]
PACK = (*SFT, "trainer.max_steps=5", "trainer.eval_strategy=steps", "trainer.eval_steps=2")
PACK_POINTS = [
    Point("runner.packed.train_pack:_prepare"),
    Point("runner.packed.train_pack:_load", after=True),
    Point("runner.evaluation.generate:HeldOutGenerator.answer"),
    Point("runner.packed.trainer:PackedTrainer.training_step", 5),
    Point("runner.packed.trainer:PackedTrainer.evaluate", 2, after=True),
    Point("runner.runs.checkpoint:_seal", 3),
    Point("runner.runs.checkpoint:_replace", 5, after=True),
    Point("runner.packed.trainer:PackedTrainer.train", after=True),
    Point("runner.packed.train_pack:_answer"),
    Point("runner.packed.train_pack:_conclude"),
    Point("runner.packed.train_pack:complete_adapter"),
    Point("runner.packed.train_pack:conclude", 1, after=True),
    Point("runner.runs.run_folder:RunFolder.finish", 1, after=True),
    Point("runner.packed.train_pack:_conclude", 2),
    Point("runner.reports.run_report:write_report", 2),
]


def pack(folder: str, words: tuple[str, ...], chosen: list[int], settings: dict[str, Any]) -> None:
    run_pack(Path(folder), words, GRID, chosen, checkpoint_seconds=1e9, **settings)


@pytest.fixture(scope="module")
def whole_pack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The runs of a pack to which nothing happens, by its words; each is trained once."""
    found: dict[tuple[str, ...], list[Run]] = {}

    def of(words: tuple[str, ...], **settings: Any) -> list[Run]:
        key = (*words, str(settings))
        if key not in found:
            folder = tmp_path_factory.mktemp("whole")
            found[key] = run_pack(folder, words, GRID, checkpoint_seconds=1e9, **settings)
        return found[key]

    return of


def pack_again(folder: Path, words: tuple[str, ...], point: Point, **settings: Any) -> None:
    """Kill a pack, and run those of its cells that have not ended: a sweep leaves alone what has."""
    process = start(call, folder, pack, ("cut", words, list(range(len(GRID))), settings), point)
    process.join()
    assert process.exitcode == -signal.SIGKILL, log(folder)
    cells = [Run(0, folder / f"cut/{number}") for number in range(len(GRID))]
    left = [number for number, cell in enumerate(cells) if cell.record["status"] == "running"]
    if not left:
        return
    process = start(call, folder, pack, ("cut", words, left, settings))
    process.join()
    assert process.exitcode == 0, log(folder)


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["each step", "never"])
@pytest.mark.parametrize("point", PACK_POINTS, ids=str)
def test_27_kill_9_in_every_phase_of_a_pack(tmp_path, whole_pack, point, saves):
    """Its cells are concluded one by one: those that are left resume without the others."""
    kept = [word for word in PACK if "save_" not in word]
    words = PACK if saves == "each step" else (*kept, "trainer.save_strategy=no")
    if saves == "never" and "checkpoint" in point.place:
        point = Point(point.place, 1, point.after)  # there is one, behind the last step
    pack_again(tmp_path, words, point)
    for number, run in enumerate(whole_pack(words)):
        if (tmp_path / f"cut/{number}/report.html").is_file():  # killed between a record and its report
            assert results(tmp_path / "cut" / str(number)) == results(run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        Point("runner.packed.halving:Halving._decide"),
        Point("runner.packed.halving:write_atomically"),
        Point("runner.packed.halving:write_atomically", after=True),
        Point("runner.packed.train_pack:_record_end"),
        Point("runner.packed.trainer:PackedTrainer.training_step", 7),
    ],
    ids=str,
)
def test_27_kill_9_while_a_pack_is_halved(tmp_path, whole_pack, point):
    settings = {"halving": [0.5], "keep": 0.5}
    whole = whole_pack(PACK, **settings)
    pack_again(tmp_path, PACK, point, **settings)
    for number, run in enumerate(whole):
        cut = Run(0, tmp_path / f"cut/{number}")
        assert cut.record["status"] == run.record["status"]
        assert cut.record.get("dropped") == run.record.get("dropped")
        if run.record["status"] == "completed":
            assert results(cut.folder) == results(run.folder)
    assert {run.record["status"] for run in whole} == {"completed", "dropped"}


@pytest.mark.slow
def test_27_kill_9_of_a_sweep_and_the_same_command_at_once(tmp_path):
    """The jobs of a killed sweep end some seconds after it; the next start waits for them."""
    axes = ("-m", "lora.r=2,4", "trainer.packing=false,true")
    words = [sys.executable, "-m", "runner", *axes, *PACK]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def sweep(folder: str, seconds: float | None = None) -> int:
        output = (tmp_path / "out.log").open("ab")
        process = subprocess.Popen(
            [*words, f"output_dir={folder}"], cwd=tmp_path, stdout=output, stderr=output, env=environment
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    assert sweep("whole") == 0, log(tmp_path)
    ended = [sweep("cut", seconds) for seconds in (9, 15)]
    assert -signal.SIGKILL in ended
    assert sweep("cut") == 0, log(tmp_path)
    cells = [path.parent for path in (tmp_path / "whole").glob("*/run.json")]
    assert len(cells) == 4
    for cell in cells:
        assert results(tmp_path / "cut" / cell.name) == results(cell)
