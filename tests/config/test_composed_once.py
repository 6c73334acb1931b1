"""Configs that are copies of composed options are those that Hydra composes one by one."""

import copy

import hydra
import pytest
from omegaconf import OmegaConf

from helpers.command import check, issues
from recipes import OBJECTIVES
from runner.cli import compose, composed_once, run_config

CELLS = [
    ("model=tiny",),
    ("model=tiny", "lora.r=4"),
    ("model=tiny", "lora.r=8", "lora=dora"),
    ("lora.r=8", "model=tiny", "lora=dora", "lora.lora_alpha=${lora.r}"),
    ("model=tiny", "+lora.rank_pattern={q_proj: 2}"),
    ("model=tiny", "+lora.rank_pattern={v_proj: 4}", "lora={r: 3}"),
    ("model=tiny", "++lora.alpha_pattern.q_proj=2", "trainer.learning_rate=1e-3"),
    ("model=tiny", "~lora.r"),
    ("experiment=qwen3-4b-qlora", "model=tiny", "trainer.max_steps=2"),
    ("experiment=qwen3-4b-qlora", "trainer.max_steps=3", "trainer.max_steps=4"),
    ("model=tiny", "hydra.job.name=mine", "output_dir=${hydra:job.name}"),
    ("model=tiny", "~quantization", "+quantization=nf4"),
    ("model=tiny", "hydra.overrides.task=[x]", "lora=dora", "seed=3"),
    ("hydra.job.config.override_dirname.kv_sep='${output_dir}'", "output_dir=a", "lora.r=3"),
    ("model=tiny", "lora.rank=4"),
    ("model={weights: random}", "model.r=1"),
    ("model=tiny", "data.columns={prompt: q}", "data.columns={completion: a}"),
]
WRONG = [
    ("model=tiny", "lora@x=dora"),
    ("+experiment=qwen3-4b-qlora",),
    ("model=tiny", "+model=tiny"),
    ("model=tny",),
    ("model=tiny", "~lora.rr"),
    ("model=tiny", "+lora.r=4"),
    ("model=tiny", "lora.r=4,8"),
]


def composed(cells, monkeypatch, by_hydra):
    """Each composed config with its section ``hydra``, or its error."""
    if by_hydra:
        monkeypatch.setattr(compose, "compose_options_once", lambda loader: None)
    command = run_config.parse(["model=tiny"], OBJECTIVES)
    run_config.register(command)
    found = []
    with compose.started(command):
        for overrides in cells:
            try:
                config = hydra.compose("config", list(overrides), return_hydra_config=True)
            except Exception as error:
                found.append((type(error), str(error)))
            else:
                found.append((OmegaConf.to_container(copy.deepcopy(config)), config._metadata.flags))
    return found


def test_a_copy_is_what_hydra_composes(monkeypatch):
    cells = [*CELLS, *WRONG, *CELLS]
    ours = composed(cells, monkeypatch, by_hydra=False)
    for cell, mine, theirs in zip(cells, ours, composed(cells, monkeypatch, by_hydra=True), strict=True):
        assert mine == theirs, cell
    assert [cell for cell, (kind, _) in zip(cells, ours, strict=True) if isinstance(kind, type)] == WRONG


def test_an_option_of_a_folder_that_a_config_names_is_no_value(tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "one.yaml").write_text("# @package _global_\nseed: 7\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "+more=one"]
    cells = [(*words, "lora.r=2"), ("+more=one",), (*words, "lora.r=4")]
    ours = composed(cells, monkeypatch, by_hydra=False)
    assert ours == composed(cells, monkeypatch, by_hydra=True)
    assert [config["seed"] for config, _ in ours] == [7, 0, 7]


def test_what_hydra_alone_refuses_in_one_cell_is_refused_in_any(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, more in (("fine", ""), ("over", "hydra: {overrides: {task: [x]}}\n")):
        text = f"# @package _global_\nseed: 5\n{more}"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    given = ("model=tiny", "--config-dir", str(tmp_path))
    (said,) = issues("-m", *given, "experiment=fine,over")
    assert "over.yaml: hydra.overrides is set by the command line only" in said
    (said,) = issues(*given, "experiment=over", "lora.r=4", "seed=3")
    assert "over.yaml" in said


def test_options_are_composed_once_for_all_cells(monkeypatch):
    times = []
    load = composed_once.ConfigLoaderImpl._compose_config_from_defaults_list

    def counted(self, *given, **named):
        times.append(1)
        return load(self, *given, **named)

    monkeypatch.setattr(composed_once.ConfigLoaderImpl, "_compose_config_from_defaults_list", counted)
    check("-m", "model=tiny", "lora=r8,dora", "lora.lora_alpha=1,2,3,4,5,6")
    assert len(times) == 3, "each of two options, and the first config"


@pytest.mark.parametrize("key", ["seed", "output_dir"])
def test_a_value_of_one_cell_is_not_in_the_next(monkeypatch, key):
    cells = [("model=tiny", f"{key}=5"), ("model=tiny",)]
    (first, _), (second, _) = composed(cells, monkeypatch, by_hydra=False)
    assert (first[key], second[key]) == (5, 0 if key == "seed" else None)
