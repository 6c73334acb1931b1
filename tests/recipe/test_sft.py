"""Supervised fine-tuning through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.command import ADAPTER, QUIET, RECORD, TINY
from helpers.paths import CONF
from helpers.tiny_model import prompt_logits, tiny_base

OPTIONS = sorted(file.stem for file in (CONF / "lora").glob("*.yaml"))

# First losses of the tiny model on the embedded rows; made with torch 2.13 on x86-64, float32.
GOLDEN = [6.27916, 6.27374, 6.26171]


@pytest.mark.report
def test_a_run_leaves_exactly_the_files_of_the_contract(cli):
    run = cli(*TINY)
    assert run.code == 0
    top = {name for name in run.files() if not name.startswith("checkpoints/")}
    assert top == RECORD | ADAPTER
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["checkpoint-3"]
    record = run.record
    assert record["status"] == "completed"
    assert record["metrics"]["steps"] == 3
    assert {"exact_match_before", "exact_match_after", "eval_loss"} <= record["metrics"].keys()
    assert record["data"]["train"]["rows"] == 24
    assert record["model"]["weights"] == "random"
    assert [line["step"] for line in run.lines("metrics.jsonl") if "loss" in line] == [1, 2, 3]
    assert all(
        sample.keys() >= {"prompt", "expected", "before", "after"} for sample in run.lines("samples.jsonl")
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="random weights drawn on CUDA are other weights")
def test_the_loss_trajectory_is_the_golden_one(parent):
    losses = [line["loss"] for line in parent(*TINY).lines("metrics.jsonl") if "loss" in line]
    assert losses == pytest.approx(GOLDEN, abs=2e-4)


@pytest.mark.slow
def test_the_saved_config_runs_again_to_the_same_bytes(cli, tmp_path):
    first = cli(*TINY, "lora.lora_dropout=0.1")
    again = cli("--config-path", str(first.folder), "--config-name", "config", folder="again")
    other = cli(*TINY, "lora.lora_dropout=0.1", "seed=1", folder="other")
    weights = [
        (run.folder / "adapter/adapter_model.safetensors").read_bytes() for run in (first, again, other)
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert first.record["digests"]["adapter"] == again.record["digests"]["adapter"]
    assert first.record["data"] == again.record["data"]


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in ("none", "loftq")])
@pytest.mark.slow
def test_every_adapter_trains_and_loads_in_plain_peft(cli, option, monkeypatch):
    from peft import PeftModel

    trained = {}
    from runner.models.adapter import AdapterSaver

    save = AdapterSaver.save

    def spy(self, folder):
        trained["logits"] = prompt_logits(self._model)
        save(self, folder)

    monkeypatch.setattr(AdapterSaver, "save", spy)
    run = cli(
        *TINY, f"lora={option}", "data.metric=null", "generation.samples=1", "trainer.learning_rate=1e-2"
    )
    assert run.code == 0
    loaded = PeftModel.from_pretrained(tiny_base(), run.folder / "adapter")
    assert not torch.equal(prompt_logits(tiny_base()), trained["logits"])
    torch.testing.assert_close(prompt_logits(loaded), trained["logits"], atol=2e-4, rtol=1e-3)


@pytest.mark.report
def test_full_finetuning_saves_a_model(cli):
    from transformers import AutoModelForCausalLM

    run = cli(*TINY, "lora=none")
    assert run.code == 0
    assert run.record["metrics"]["trainable_parameters"] == run.record["metrics"]["total_parameters"]
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert not torch.equal(prompt_logits(model), prompt_logits(tiny_base()))


def test_packing_trains_on_the_same_tokens_with_the_same_loss(cli):
    """One packed row attends within its documents only: its loss is that of the rows padded."""
    same = ("trainer.max_steps=1", "data.max_rows=3", "trainer.per_device_train_batch_size=3")
    padded = cli(*TINY, *same, "trainer.max_length=512")
    packed = cli(*TINY, *same, "trainer.max_length=2048", "trainer.packing=true", folder="packed")
    first = [run.lines("metrics.jsonl")[0] for run in (padded, packed)]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], abs=1e-5)
    assert first[1]["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-4)
    assert first[1]["num_tokens"] == first[0]["num_tokens"]


@pytest.mark.report
def test_a_loss_that_is_not_finite_stops_the_run(cli):
    run = cli(
        *TINY,
        "trainer.learning_rate=1e38",
        "trainer.max_grad_norm=0",
        "trainer.warmup_steps=0",
        "trainer.max_steps=20",
    )
    assert run.code == 3
    assert run.record["status"] == "diverged"
    assert "step" in run.record["error"]["message"]
    assert not (run.folder / "adapter").exists()
    assert (run.folder / "report.html").exists()


def test_a_held_out_loss_that_is_not_finite_fails_the_run(cli):
    wild = ("trainer.learning_rate=1e30", "trainer.warmup_steps=0", "trainer.max_steps=1")
    run = cli(*TINY, *QUIET, *wild)
    assert (run.code, run.record["status"]) == (3, "diverged")
    assert "the held-out loss after step 1 is nan" in run.record["error"]["message"]
    assert not (run.folder / "adapter").exists()


@pytest.mark.report
def test_a_failure_in_training_leaves_a_complete_record(cli, monkeypatch):
    from runner.training.sft import GuardedSFTTrainer

    def fail(self, *args, **kwargs):
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(GuardedSFTTrainer, "training_step", fail)
    run = cli(*TINY)
    assert run.code == 1
    assert run.record["status"] == "failed"
    assert "on fire" in run.record["error"]["traceback"]
    assert {"config.yaml", "run.json", "report.html"} <= run.files()


def test_a_used_folder_is_refused(cli, parent):
    parent(*TINY, folder="run")
    before = (Path("run") / "run.json").read_bytes()
    assert cli(*TINY).code == 2
    assert (Path("run") / "run.json").read_bytes() == before


def test_a_wrong_target_module_is_refused_with_the_right_names(cli, capsys):
    run = cli(*TINY, "lora.target_modules=[q_proj,querry]")
    assert run.code == 2
    assert "q_proj" in capsys.readouterr().err
    assert not run.folder.exists()


def test_a_field_that_trl_refuses_is_a_config_mistake(cli, capsys):
    run = cli(*TINY, "trainer.dataloader_prefetch_factor=2")
    assert run.code == 2
    assert "trainer" in capsys.readouterr().err
    assert not run.folder.exists()


def test_the_best_checkpoint_is_kept_and_every_checkpoint_is_complete(cli):
    run = cli(
        *TINY,
        "trainer.max_steps=4",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
        "trainer.save_strategy=steps",
        "trainer.save_steps=1",
        "trainer.save_total_limit=2",
        "trainer.load_best_model_at_end=true",
        "trainer.metric_for_best_model=eval_loss",
    )
    assert run.code == 0
    folders = sorted((run.folder / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["checkpoint-3", "checkpoint-4"]
    for folder in folders:
        state = json.loads((folder / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]) == Path("run/checkpoints") / folder.name
        assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt"} <= {
            f.name for f in folder.iterdir()
        }


def test_a_new_run_starts_from_an_earlier_adapter(cli, parent):
    first = parent(*TINY)
    second = cli(*TINY, f"adapter={first.folder}", "trainer.learning_rate=1e-6", folder="second")
    assert second.code == 0
    starts = [run.lines("metrics.jsonl")[0]["loss"] for run in (first, second)]
    assert starts[1] < starts[0]


def test_two_starts_in_the_same_second_get_two_folders(cli, tmp_path):
    from runner.runs.run_folder import create

    assert len({create(None, "same") for _ in range(5)}) == 5


def test_a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one(cli, monkeypatch):
    from runner.training.sft import GuardedSFTTrainer

    steps = (
        *TINY,
        "trainer.max_steps=4",
        "trainer.save_strategy=steps",
        "trainer.save_steps=2",
        "lora.lora_dropout=0.1",
    )
    whole = cli(*steps, folder="whole")
    step = GuardedSFTTrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise RuntimeError("power cut")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedSFTTrainer, "training_step", stop)
        assert cli(*steps, folder="cut").code == 1
    assert cli(*steps, "resume=auto", folder="cut").code == 0
    weights = [(Path(name) / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert whole.code == 0


def test_resuming_with_another_learning_rate_is_refused(cli, parent, capsys):
    first = parent(*TINY)
    assert cli(*TINY, f"resume={first.folder}", "trainer.learning_rate=5e-5", folder="second").code == 2
    assert "trainer.learning_rate" in capsys.readouterr().err


@pytest.mark.slow
def test_padding_free_rows_have_the_loss_of_padded_rows(cli):
    same = ("trainer.max_steps=1", "data.max_rows=3", "trainer.per_device_train_batch_size=3")
    losses = [
        cli(*TINY, *same, f"trainer.padding_free={value}", folder=f"free-{value}").lines("metrics.jsonl")[0][
            "loss"
        ]
        for value in ("false", "true")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("trainer.max_steps=1",), "the only step has a learning rate of 0: nothing is trained"),
        (("trainer.max_steps=2", "trainer.warmup_steps=2"), "all 2 steps are warmup"),
        (("trainer.max_steps=1", "trainer.warmup_steps=0"), None),
        (("trainer.max_steps=1", "trainer.lr_scheduler_type=constant"), None),
        (
            ("trainer.max_steps=-1", "trainer.packing=true", "trainer.per_device_train_batch_size=24"),
            "the only step has a learning rate of 0: nothing is trained",
        ),
    ],
)
@pytest.mark.slow
def test_a_run_that_is_all_warmup_says_so(cli, words, says):
    run = cli(*TINY, "generation.samples=0", "data.metric=null", *words)
    assert run.code == 0
    assert [says in note for note in run.record["notes"] if "step" in note] == [True] * (says is not None)
    from safetensors.torch import load_file

    trained = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    moved = any(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)
    assert moved == (says is None or "only" not in says)


def test_a_reporter_that_is_not_installed_is_refused(cli, capsys, monkeypatch):
    from runner.config import late_checks

    monkeypatch.setattr(late_checks, "find_spec", lambda name: None)
    assert cli(*TINY, "trainer.report_to=wandb").code == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_a_refused_resume_leaves_the_earlier_run_as_it_was(cli, parent, capsys):
    parent(*TINY, folder="run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert cli(*TINY, "resume=auto", "trainer.learning_rate=5e-5").code == 2
    assert "trainer.learning_rate" in capsys.readouterr().err
    assert cli(*TINY, "resume=auto", "seed=1").code == 2
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_evaluations_as_often_as_the_log_are_warned_of(cli):
    words = (*TINY, *QUIET, "trainer.max_steps=1", "trainer.eval_strategy=steps")
    often, seldom = cli(*words), cli(*words, "trainer.eval_steps=1", folder="seldom")
    said = [any("after every step" in note for note in run.record["notes"]) for run in (often, seldom)]
    assert said == [True, False]
