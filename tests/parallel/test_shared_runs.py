"""A run that two processes share: the losses, norms and weights of one process, whatever happens to it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import TINY, Run
from parallel.forked import FOLLOWER, Leader, lead
from parallel.runs import DDP, SMALL, WORDS, await_line, distance
from runner.parallel import launch

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")

BEST = (
    "trainer.load_best_model_at_end=true",
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=1",
    "trainer.save_strategy=steps",
    "trainer.save_steps=1",
    "trainer.save_total_limit=1",
    "trainer.learning_rate=0.5",
)
PAIRS = (*WORDS, "recipe=dpo", "trainer.learning_rate=1e-3")


def compare(cli: Callable[..., Run], *words: str) -> dict[str, float]:
    """How far a run of two processes is from one of a single one."""
    alone, shared = cli(*words, folder="alone"), cli(*words, *DDP, folder="shared")
    assert (alone.code, shared.code) == (0, 0)
    assert alone.files() == shared.files()
    assert shared.record["parallel"]["processes"] == 2
    assert shared.record["parallel"]["rows_a_step"] == alone.record["parallel"]["rows_a_step"]
    return distance(alone, shared)


@pytest.fixture
def both(cli, forked) -> Callable[..., dict[str, float]]:
    """As ``compare``, with a process that is forked."""
    return functools.partial(compare, cli)


def test_a_step_is_that_of_one_process(cli, capsys):
    found = compare(cli, *WORDS, "trainer.max_steps=3", "lora.lora_dropout=0.1")
    assert max(found.values()) < 1e-5, found
    said = capsys.readouterr().out
    assert "2 processes, 4 rows each a step, which has 8 rows" in said
    assert "GiB of memory at the peak of 2 processes" in said
    assert "GiB in each of 2 processes" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (*WORDS, "trainer.eval_strategy=steps", "trainer.eval_steps=2", "lora.lora_dropout=0.2"),
        (*SMALL, "lora.lora_dropout=0.2"),
        (*SMALL, "speed=plain", "trainer.eval_strategy=epoch"),
        (*WORDS, "trainer.dataloader_drop_last=true", "trainer.max_steps=4"),
        (*WORDS, "trainer.train_sampling_strategy=group_by_length"),
        (*WORDS, "trainer.gradient_checkpointing=true"),
        (*PAIRS, "trainer.eval_strategy=steps", "trainer.eval_steps=2"),
        (*PAIRS, "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1"),
        (*WORDS, "lora=none", "trainer.learning_rate=1e-3"),
        (*WORDS, "trainer.packing=true", "trainer.max_length=256", "trainer.per_device_train_batch_size=1"),
        (*WORDS, *BEST),
        (*WORDS, "lora=pissa", "trainer.learning_rate=1e-3"),
        (*PAIRS, "recipe=orpo"),
        (*PAIRS, "recipe=reward"),
    ],
    ids=lambda words: " ".join(words[len(WORDS) :]),
)
def test_runs_are_equal_in_float32(both, words):
    found = both(*words)
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
def test_runs_are_equal_in_float64(both):
    found = both(*SMALL, "model.dtype=float64", "lora.lora_dropout=0.2")
    assert max(found.values()) < 1e-12, found


@pytest.mark.slow
def test_a_classifier_is_that_of_one_process(both):
    rows = [
        {"text": f"{'good' if number % 3 else 'bad'} {number}", "label": number % 3 > 0}
        for number in range(21)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("recipe=classify", "data=file", "data.path=rows.jsonl", "data.eval_split=0.2")
    found = both(*WORDS, *words, "trainer.eval_strategy=epoch")
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
def test_each_process_may_take_rows_of_its_own(cli, forked):
    shared = cli(*WORDS, *DDP, "parallel.keep_batch=false", folder="shared")
    wider = cli(*WORDS, "trainer.gradient_accumulation_steps=4", folder="alone")
    assert shared.record["parallel"]["rows_a_step"] == 16
    assert max(distance(wider, shared).values()) < 1e-5


def _followers(leader: Leader) -> list[int]:
    children = Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text(encoding="utf-8").split()
    return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text().strip() == FOLLOWER]


LONG = (*WORDS, "trainer.max_steps=400", "trainer.save_strategy=steps", "trainer.save_steps=100")


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_its_error(tmp_path):
    leader = lead(*LONG, *DDP, folder=tmp_path / "run")
    await_line(tmp_path / "run", 3, leader)
    (follower,) = _followers(leader)
    os.kill(follower, signal.SIGKILL)
    assert leader.wait(30) == 1
    assert "process 1 of 2: its process was ended by SIGKILL" in leader.said
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "failed"
    assert "process 1 of 2" in record["error"]["message"]


BROKEN = """
import sys
from pathlib import Path
from recipes import follow
from runner.core.process import orphan
from runner.parallel.trainer import SharedTrainer

def broken(*_):
    raise ValueError("broken in the second process alone")

SharedTrainer._added_up = broken
orphan.die_with_parent()
sys.exit(follow.main(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_an_error_of_another_process_is_the_run_s(cli, capsys, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    monkeypatch.setattr(launch, "_WORKER", [str(tmp_path / "broken.py")])
    began = time.monotonic()
    run = cli(*WORDS, *DDP)
    assert time.monotonic() - began < 90
    assert run.code == 1
    assert "process 1 of 2: broken in the second process alone" in run.record["error"]["message"]
    assert "broken in the second process alone" in capsys.readouterr().err


@pytest.mark.slow
def test_when_the_first_process_is_killed_none_is_left(tmp_path):
    leader = lead(*LONG, *DDP, folder=tmp_path / "run")
    await_line(tmp_path / "run", 3, leader)
    (follower,) = _followers(leader)
    leader.kill()
    leader.wait()
    deadline = time.monotonic() + 30
    while _alive(follower):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("again", [(), DDP], ids=["alone", "shared"])
def test_a_signal_ends_all_with_one_checkpoint_that_any_number_resumes(cli, forked, tmp_path, again):
    words = (*WORDS, "trainer.max_steps=40", "lora.lora_dropout=0.1")
    leader = lead(*words, *DDP, folder=tmp_path / "run")
    await_line(tmp_path / "run", 2, leader)
    leader.terminate()
    assert leader.wait(60) == 75
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("checkpoint-")) >= 2
    assert not any(".writing" in path.name for path in (tmp_path / "run").rglob("*"))
    resumed = cli(*words, *again, "resume=auto")
    assert resumed.code == 0
    assert len([line for line in resumed.lines("metrics.jsonl") if "loss" in line]) == 40
    whole = cli(*words, folder="whole")
    assert max(distance(whole, resumed).values()) < 1e-5


@pytest.mark.slow
def test_killed_and_resumed_it_is_what_it_would_have_been(cli, forked, tmp_path):
    words = (*WORDS, "trainer.max_steps=12", "trainer.save_strategy=steps", "trainer.save_steps=2")
    leader = lead(*words, *DDP, folder=tmp_path / "run")
    await_line(tmp_path / "run", 5, leader)
    leader.kill()
    leader.wait()
    resumed, whole = cli(*words, *DDP, "resume=auto"), cli(*words, *DDP, folder="whole")
    assert (resumed.code, whole.code) == (0, 0)
    assert max(distance(whole, resumed).values()) == 0.0


@pytest.mark.slow
def test_torchrun_starts_the_same_run(cli, tmp_path):
    command = [shutil.which("torchrun", path=str(Path(sys.executable).parent)), "--nproc-per-node=2"]
    words = [*WORDS, "parallel=ddp", f"output_dir={tmp_path / 'shared'}"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    port = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [*map(str, command), *port, "-m", "runner", *words], env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    shared, alone = Run(0, tmp_path / "shared"), cli(*WORDS, folder="alone")
    assert shared.files() == alone.files()
    assert max(distance(alone, shared).values()) < 1e-5
    again = subprocess.run(
        [*map(str, command), *port, "-m", "runner", *words, "resume=auto"],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert again.returncode == 0
    assert "completed already" in again.stdout.decode()


def test_processes_of_a_launcher_need_a_config_that_says_so(cli, capsys, monkeypatch):
    from runner.core.process import ranks

    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks._state, "claimed", ranks.Rank())
    run = cli(*TINY)
    assert run.code == 2
    said = capsys.readouterr().err
    assert "WORLD_SIZE=2" in said
    assert "parallel=ddp" in said
    assert not run.folder.exists()
