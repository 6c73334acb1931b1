"""The default jobs with the real pretrained model, as a new user runs them, but for fewer held-out rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT
from runner.core.paths import cache_dir

# Those that train on rows of the user's own; a chain is tested with its stages.
FILES = sorted((ROOT / "conf/experiment").glob("*.yaml"))
EXPERIMENTS = [file.stem for file in FILES if "/recipe: chain" not in file.read_text()]
PRETRAINED = ("qwen3-4b-qlora", "qwen3-4b-alpaca")
# Each answer takes seconds of a processor without bf16, and a step of DPO 14.
FEW = ("data.eval_max_rows=40",)
# Nothing but dead ends, for a run that must not touch the network.
DEAD = "http://127.0.0.1:9"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": DEAD,
    "PIP_INDEX_URL": DEAD,
    "https_proxy": DEAD,
    "http_proxy": DEAD,
}


def _command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


# The tests of one chain of runs stay in one process (pytest -m slow --dist loadgroup).
chain = pytest.mark.xdist_group("default job")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default job's run folder, beside which the next steps of the README leave theirs."""
    folder = tmp_path_factory.mktemp("default")
    done = _command(folder, *FEW, "output_dir=sft")
    assert done.returncode == 0, done.stderr
    assert "exact match" in done.stdout
    return folder / "sft"


@pytest.mark.slow
@chain
def test_the_default_job_learns_to_answer_unseen_orders(trained):
    metrics = _record(trained)["metrics"]
    assert metrics["exact_match_before"] <= 0.05
    assert metrics["exact_match_after"] >= 0.85
    assert len((trained / "samples.jsonl").read_text().splitlines()) == 5


@pytest.fixture(scope="module")
def preferring(trained: Path) -> Path:
    """The default preference job, on top of the default job."""
    done = _command(trained.parent, "recipe=dpo", "adapter=sft", *FEW, "output_dir=dpo")
    assert done.returncode == 0, done.stderr
    return trained.parent / "dpo"


@pytest.mark.slow
@chain
def test_the_default_preference_job_prefers_the_right_answers(preferring):
    metrics = _record(preferring)["metrics"]
    assert metrics["eval_rewards_accuracies"] > 0.9
    assert metrics["exact_match_after"] >= metrics["exact_match_before"] - 0.02


@pytest.mark.slow
@chain
def test_the_merged_model_scores_like_its_adapter(preferring):
    folder = preferring.parent
    done = _command(folder, "recipe=merge", "adapter=dpo", "export=gguf", "output_dir=merged")
    assert done.returncode == 0, done.stderr
    metrics = _record(folder / "merged")["metrics"]
    assert metrics["merge_kl"] < 0.01
    assert metrics["merge_greedy_agreement"] > 0.98
    few = ("data=orders", "data.eval_max_rows=20")
    model = ("model.path=merged/model", "model.weights=pretrained")
    assert _command(folder, "recipe=evaluate", *few, *model, "output_dir=score").returncode == 0
    assert _record(folder / "score")["metrics"]["exact_match"] >= 0.8


@pytest.mark.slow
def test_with_a_warm_cache_nothing_is_asked_of_the_network(tmp_path):
    warm = _command(tmp_path, "recipe=inspect", "output_dir=warm")
    assert warm.returncode == 0, warm.stderr
    few = ("trainer.max_steps=1", "generation.rows=1", "data.eval_max_rows=1")
    done = _command(tmp_path, *few, "output_dir=run", RUNNER_CACHE=str(cache_dir()), **OFFLINE)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(tmp_path, name):
    """As written but for a base of this machine's size, for two of them a pretrained one."""
    rows = [
        f'{{"instruction": "Add {n} and {n + 1}.", "input": "", "output": "It is {2 * n + 1}."}}\n'
        for n in range(44)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(rows[:40]))
    (tmp_path / "held_out.jsonl").write_text("".join(rows[40:]))
    few = ("trainer.max_steps=1", "trainer.gradient_accumulation_steps=1", "generation.samples=1")
    text = (ROOT / "conf/experiment" / f"{name}.yaml").read_text()
    own = ["data.eval_path=held_out.jsonl"] if "data.eval_path=" in text else []
    own += ["parallel.num_processes=2"] if "/parallel:" in text else []
    short = (
        "data.max_rows=4",
        "data.eval_max_rows=2",
        'trainer.eval_strategy="no"',
        "data.train_on=assistant",
    )
    model = "smollm2-135m" if name in PRETRAINED else "tiny"
    words = (f"experiment={name}", f"model={model}", "data.path=rows.jsonl", *few, *short, *own)
    done = _command(tmp_path, *words, "trainer.load_best_model_at_end=false", "output_dir=run")
    assert done.returncode == 0, done.stderr + done.stdout
