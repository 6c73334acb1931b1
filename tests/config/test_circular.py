"""Values that lead back to themselves through ``${hydra:...}`` are refused with all keys on the way,
and keys that Hydra has not."""

from pathlib import Path

import pytest

from helpers.command import issues

CIRCLES = {
    "seed: ${hydra:job.name}\nhydra: {job: {name: '${seed}'}}": (2, "seed -> hydra.job.name -> seed"),
    "seed: ${hydra:sweep.dir}\nhydra: {sweep: {dir: 'x${seed}'}}": (2, "seed -> hydra.sweep.dir -> seed"),
    "hydra:\n  job:\n    name: ${hydra:job.name}": (4, "hydra.job.name -> hydra.job.name"),
    "data:\n  path: ${hydra:run.dir}\nhydra: {run: {dir: 'x${data.path}'}}": (
        3,
        "data.path -> hydra.run.dir -> data.path",
    ),
    "hydra:\n  job: {name: '${hydra:sweep.dir}'}\n  sweep:\n    dir: ${hydra:job.name}": (
        5,
        "hydra.sweep.dir -> hydra.job.name -> hydra.sweep.dir",
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["run", "sweep"])
@pytest.mark.parametrize("text", CIRCLES)
def test_a_circle_through_hydra_is_named(cli, capsys, text, flags):
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert cli("--config-dir", "conf", "experiment=mine", "model=tiny", *flags).code == 2
    line, circle = CIRCLES[text]
    said = capsys.readouterr().err
    assert f"conf/experiment/mine.yaml:{line}: '${{hydra:" in said
    assert f"leads back to itself: {circle}" in said
    assert "RecursionError" not in said


def test_a_circle_that_is_typed_is_named_as_typed(cli, capsys):
    assert cli("model=tiny", "hydra.job.name=${hydra:job.name}").code == 2
    said = capsys.readouterr().err
    assert "hydra.job.name=${hydra:job.name}: '${hydra:job.name}' leads back to itself" in said


def test_the_same_value_twice_is_no_circle(cli):
    words = ("recipe=inspect", "model=tiny", "data.max_rows=2", "hydra.job.name=${hydra:run.dir}")
    assert cli(*words, "template.system=${hydra:job.name}${hydra:job.name}").code == 0


@pytest.mark.parametrize("key", ["runtime.cwdd", "runtime.output_dir", "job.num"])
def test_a_value_that_hydra_does_not_have_is_refused(key):
    (message,) = issues("model=tiny", f"template.system=${{hydra:{key}}}")
    assert f"Hydra has no {key!r}" in message
