"""A sweep whose values are chosen by optuna."""

import json

import pytest
import yaml

from helpers.command import issues
from runner.cli import command
from runner.core.errors import ExitCode

STUDY = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=6",
    "hydra.sweeper.n_jobs=3",
    "lora.r=4,8,16",
    "trainer.learning_rate=tag(log,interval(1e-5,1e-3))",
)


def test_without_optuna_the_command_to_install_it_is_named(monkeypatch, place):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    (found,) = issues("-m", *STUDY[:1], *STUDY[4:])
    assert "pip install 'hydra-optuna-sweeper" in found
    (found,) = issues("-m", "lora.r=interval(4,8)")
    assert "hydra/sweeper=optuna" in found


@pytest.mark.slow
def test_a_study_packs_the_cells_of_each_batch(optuna, sweep, started):
    ran = sweep(*STUDY)
    assert ran.code == 0
    jobs = [line.partition(":") for line in started()]
    assert [name for name, _, _ in jobs] == ["pack-1", "pack-2"]
    assert len(ran.statuses) == 6
    assert ran.record["axes"]["lora.r"] == ["4", "8", "16"]
    assert len(set(ran.record["axes"]["trainer.learning_rate"])) == 6
    found = yaml.safe_load((ran.folder / "optimization_results.yaml").read_text())
    best = json.loads((ran.folder / ran.record["best"] / "run.json").read_text())
    assert found["best_value"] == best["metrics"]["eval_loss"]
    assert sweep(*STUDY).code == 0
    assert started() == [], "the same study again: every cell is done"


def test_a_study_over_repeats_sees_their_mean(optuna, sweep, started):
    ran = sweep(
        *STUDY[:1], "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "lora.r=8", "sweep.repeat=3"
    )
    assert list(ran.statuses) == ["seed=0", "seed=1", "seed=2"]
    found = yaml.safe_load((ran.folder / "optimization_results.yaml").read_text())
    values = [json.loads((ran.folder / name / "run.json").read_text()) for name in ran.statuses]
    assert found["best_value"] == pytest.approx(sum(run["metrics"]["eval_loss"] for run in values) / 3)


def test_a_study_is_resumed_by_its_command(optuna, sweep, started):
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "lora.r=8"]
    words += ["trainer.learning_rate=1e-2", "trainer.learning_rate=tag(log,interval(1e-5,1e-3))"]
    first = sweep(*words)
    names = list(first.statuses)
    assert len({*names, "trainer.learning_rate=0.01"}) == 3, "an axis, not the value typed before it"
    assert started()
    again = sweep(*words)
    assert started() == []
    assert list(again.statuses) == names
    best = yaml.safe_load((again.folder / "optimization_results.yaml").read_text())
    assert f"trainer.learning_rate={best['best_params']['trainer.learning_rate']}" == again.record["best"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["hydra.sweeper.sampler.seed=null"], "hydra.sweeper.sampler.seed is null"),
        (["hydra.sweeper.storage=sqlite:///study.db"], "n_trials asked for anew"),
        (["hydra/sweeper/sampler=grid"], "another 1 of 2 cells"),
        (["hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2"], ""),
        ([], ""),
    ],
)
def test_a_study_that_its_command_does_not_resume_says_why(optuna, sweep, words, why):
    study = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=2", "lora.r=4,8"]
    ran = sweep(*study, *words, plan={"lora.r=4": "failed", "lora.r=8": "failed"})
    end = " ".join(ran.said.partition("resume with")[2].split())
    assert "hydra/sweeper=optuna" in end
    assert ("does not only resume" in end) == bool(why)
    assert why in end


@pytest.mark.slow
def test_a_failed_cell_is_a_failed_trial(optuna, sweep):
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "lora.r=4,8"]
    words += ["hydra/sweeper/sampler=grid", "seed=0,1"]
    stops = sweep(*words, plan={"lora.r=4,seed=0": "failed", "lora.r=8,seed=0": "failed"})
    assert stops.code == ExitCode.FAILED
    assert "the sweeper stops" in stops.said
    assert "resume with" in stops.said
    further = sweep(
        *words, "hydra.sweeper.max_failure_rate=1", plan={"lora.r=4,seed=0": "failed"}, folder="t"
    )
    assert further.code == ExitCode.FAILED
    assert sorted(further.statuses.values()) == ["completed", "completed", "completed", "failed"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.metric=exact_match_after"], "hydra.sweeper.direction=maximize"),
        (["hydra.sweeper.direction=maximize"], "hydra.sweeper.direction=minimize"),
        (["sweep.zip=[lora.r,trainer.learning_rate]"], "sweep.zip walks a grid"),
        (["hydra.sweeper.custom_search_space=os.system"], "no function may be named here"),
        (["hydra.sweeper.sampler._target_=os.system"], "'os.system' is not allowed"),
        (["trainer.learning_rate=interval(-1,1)"], "trainer.learning_rate=-1.0"),
    ],
)
def test_a_mistake_in_a_study_is_found_before_it_begins(optuna, words, said):
    assert any(said in found for found in issues("-m", *STUDY, *words))
