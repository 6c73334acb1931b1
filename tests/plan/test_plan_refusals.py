"""What ``recipe=plan`` refuses, and the remedy that it names."""

import pytest

from helpers.command import one


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("recipes.plan.found_cards", list)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan.gpu=rtx409",), "did you mean 'rtx4090'?"),
        (("plan.cells=0",), "plan.cells=0 is out of range"),
        (("lora.target_modules=[vproj]",), "has no modules 'vproj' did you mean 'v_proj'?"),
        (("parallel=fsdp2", "plan.gpu=24GiB"), "for how many GPUs to plan: parallel.num_processes=2"),
        (("lora.target_modules=[score]",), "has no modules 'score'"),
        (("model.path=some/model-of-the-hub",), "not in the hub's cache"),
        (("recipe=sft", "plan.gpu=h100"), "plan.gpu has no effect with recipe=sft"),
    ],
)
def test_refused(cli, capsys, words, said):
    assert cli("recipe=plan", *words).code == 2
    assert said in " ".join(capsys.readouterr().err.split())


WORDS = "lora.r=4 plan.gpu=24GiB"
EVERY, MLP = "lora.target_modules=all-linear", "lora.feedforward_modules=[down_proj]"


@pytest.mark.parametrize("recipe", ["plan", "sft"])
@pytest.mark.parametrize(
    ("words", "key", "hint"),
    [
        (("lora=attention-only",), "target_modules", EVERY),
        (("lora=ia3",), "target_modules", f"{EVERY} {MLP}"),
        (("lora=ia3", EVERY), "feedforward_modules", MLP),
    ],
)
def test_what_peft_has_no_default_of_is_named_with_a_remedy(cli, capsys, recipe, words, key, hint):
    model = ("model=qwen3.5-0.8b", "model.weights=random")
    assert cli(f"recipe={recipe}", *model, *words, "data.max_rows=8").code == 2
    said = f"lora.{key}: PEFT's table of {key} has no qwen3_5_text {hint}"
    assert said in " ".join(capsys.readouterr().err.split())
    if recipe == "plan":
        assert cli("recipe=plan", *model, *words, *hint.split(), "plan.gpu=24GiB", folder="again").code == 0


@pytest.mark.parametrize(
    ("experiment", "planned"),
    [
        ("qwen3-4b-alpaca-chain", [f"{WORDS} experiment=qwen3-4b-alpaca"]),
        ("orders-chain", [WORDS, f"trainer=dpo data=orders-pairs {WORDS}"]),
    ],
)
def test_a_chain_is_refused_with_the_plans_of_its_training_stages(cli, capsys, experiment, planned):
    assert cli("recipe=plan", f"experiment={experiment}", *WORDS.split()).code == 2
    said = capsys.readouterr().err.splitlines()
    assert "recipe=plan plans one training run, and a chain has several stages" in said[1]
    commands = said[2].strip().split("; ")
    assert commands == [f"python -m runner recipe=plan {words}" for words in planned]
    for number, command in enumerate(commands):
        assert cli(*command.split()[3:], folder=f"stage-{number}").code == 0


CHAIN = """# @package _global_
defaults:
  - override /recipe: chain
  - override /model: tiny
trainer: {max_steps: 2}
stages:
  sft: [recipe=sft, lora=r8, lora.use_rslora=true]
  more: [recipe=sft, "adapter={sft}", data.max_rows=8]
  dpo: [recipe=dpo, "adapter={more}", trainer.beta=0.2]
  merge: [recipe=merge, "adapter={dpo}"]
"""


def test_the_plans_of_a_chain_are_those_of_its_stages(cli, capsys, tmp_path, monkeypatch):
    """With what its file says to all stages, and what a stage has from the run of an earlier one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "steps.yaml").write_text(CHAIN)
    assert cli("--config-dir", "own", "experiment=steps", "recipe=plan").code == 2
    commands = [command.split()[3:] for command in capsys.readouterr().err.splitlines()[2].split("; ")]
    sft, more, dpo = [one(*words) for words in commands]
    assert [command[:3] for command in commands] == [["--config-dir", "own", "recipe=plan"]] * 3
    for run in (sft, more, dpo):
        assert (run.model.architecture, run.trainer["max_steps"]) == ("tiny", 2)
        assert (run.lora["r"], run.lora["use_rslora"]) == (8, True)
    assert (more.data.max_rows, dpo.data.max_rows, dpo.trainer["beta"]) == (8, None, 0.2)


@pytest.mark.parametrize("gpu", ["0GiB", "-8GiB", "rtx4900"])
def test_a_card_that_is_none_is_refused(cli, capsys, gpu):
    assert cli("recipe=plan", "model=tiny", f"plan.gpu={gpu}").code == 2
    assert f"unknown GPU '{gpu}'" in capsys.readouterr().err
