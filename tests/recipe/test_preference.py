"""Preference recipes through the command line: what they leave, what they compare with, what they refuse."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import ADAPTER, RECORD, TINY
from recipes import OBJECTIVES
from runner.training.kto import _mismatched
from runner.training.preference import PaddedRows

SAVES = ("trainer.save_strategy=steps", "trainer.save_steps=2")
FAST = ("trainer.learning_rate=0.05", "trainer.warmup_steps=0", "trainer.lr_scheduler_type=constant")
PAIRS = (*TINY[:-3], "data.max_rows=4", "data.eval_max_rows=3", "generation.max_new_tokens=4")


def write(path: str, rows: list[dict]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(prompt: str = "2+2?", chosen: str = "4", rejected: str = "5", **more: object) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.mark.sampled(4)
@pytest.mark.report
@pytest.mark.parametrize("recipe", ["dpo", "kto", "orpo", "reward"])
def test_a_recipe_leaves_exactly_these_files(cli, recipe):
    run = cli(f"recipe={recipe}", *PAIRS, "trainer.save_strategy=no")
    assert run.code == 0
    assert run.files() == RECORD | ADAPTER
    assert run.record["metrics"]["eval_loss"] > 0
    assert run.record["data"]["train"]["rows"] == (8 if recipe == "kto" else 4)


def test_the_reference_is_the_adapter_that_training_starts_from(cli, parent):
    """Steps on one batch: every one of them tells the reference's log-probability, which never moves."""
    from peft import PeftModel

    from runner.config.settings import ModelSettings
    from runner.models.model import find_base, load_model

    start = parent(*TINY, "trainer.learning_rate=0.1")
    run = cli("recipe=dpo", "adapter=start", *PAIRS, *FAST, "trainer.per_device_train_batch_size=4")
    assert (start.code, run.code) == (0, 0)
    steps = [line for line in run.lines("metrics.jsonl") if "rewards/chosen" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["rewards/chosen"] == 0
    assert abs(steps[-1]["rewards/chosen"]) > 0.1
    reference = [step["logps/chosen"] - step["rewards/chosen"] / 0.1 for step in steps]
    assert reference == pytest.approx([reference[0]] * len(reference), abs=1e-2)

    base = find_base(ModelSettings(weights="random", architecture="tiny"))
    model = load_model(base, None, torch.float32, seed=0)
    alone = _chosen_log_probability(model, run)
    adapted = _chosen_log_probability(PeftModel.from_pretrained(model, start.folder / "adapter"), run)
    assert reference[0] == pytest.approx(adapted, abs=1e-3)
    assert abs(alone - adapted) > 1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("recipe", ["dpo", "kto"])
@pytest.mark.parametrize("adapter", ["lora.target_modules=[embed_tokens,q_proj]", "lora=ia3"])
def test_an_adapter_of_any_kind_is_its_own_reference_at_first(cli, parent, adapter, recipe):
    parent(*TINY, "trainer.learning_rate=0.1", adapter)
    run = cli(f"recipe={recipe}", "adapter=start", *PAIRS, "trainer.max_steps=1")
    first = run.lines("metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2) if recipe == "dpo" else 0.5, abs=1e-6)
    assert first.get("kl", 0) == first["rewards/margins"] == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("recipe", ["dpo", "kto"])
@pytest.mark.parametrize("adapter", ["lora=adalora", "lora.bias=all"])
def test_an_adapter_that_peft_has_only_once_is_compared_with_the_base(cli, adapter, recipe):
    run = cli(f"recipe={recipe}", adapter, *PAIRS, "trainer.max_steps=1")
    assert run.code == 0
    assert run.lines("metrics.jsonl")[0]["rewards/margins"] == 0


def _chosen_log_probability(model, run) -> float:
    """Mean over the run's training rows of the summed log-probability of the chosen answer's tokens."""
    from runner.config.settings import DataSettings, ModelSettings, TemplateSettings
    from runner.data.prepare import prepare
    from runner.data.template import Renderer
    from runner.models.model import find_base

    tokenizer = find_base(ModelSettings(weights="random", architecture="tiny")).tokenizer
    settings = DataSettings(path="embedded:orders_pairs_train", max_rows=4)
    rows = prepare(settings, Renderer(tokenizer, TemplateSettings()), 640, 0, "preference").train.rows
    sums = []
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
        ids, labels = ids.to(model.device), labels.to(model.device)
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        trained = labels != -100
        sums.append(scores[trained, labels[trained]].sum().item())
    return sum(sums) / len(sums)


@pytest.mark.slow
def test_reference_log_probabilities_computed_before_give_the_same_result(cli):
    words = ("recipe=dpo", *PAIRS, "trainer.learning_rate=0.01", "trainer.precompute_ref_log_probs")
    runs = [cli(*words[:-1], f"{words[-1]}={early}", folder=f"early-{early}") for early in ("false", "true")]
    first, second = (load_file(run.folder / "adapter/adapter_model.safetensors") for run in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-4)
    losses = [run.record["metrics"]["eval_loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="sums on CUDA have no fixed order")
def test_a_cut_run_goes_on_to_the_same_bytes(cli, parent):
    words = ("recipe=dpo", *PAIRS, "trainer.max_steps=4", *SAVES)
    parent(*TINY)
    cli(*words, "adapter=start", folder="whole")
    cli(*words, "adapter=start", "resume=whole/checkpoints/checkpoint-2", folder="cut")
    weights = [(Path(name) / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", OBJECTIVES["dpo"].losses)
def test_every_loss_of_the_list_trains(cli, loss):
    more = ["trainer.label_smoothing=0.1"] if loss in ("exo_pair", "robust") else []
    run = cli("recipe=dpo", f"trainer.loss_type={loss}", *more, *PAIRS, "trainer.max_steps=1")
    assert run.code == 0
    assert math.isfinite(run.record["metrics"]["train_loss"])


@pytest.mark.slow
def test_whole_weights_are_compared_with_a_copy_of_themselves(cli):
    run = cli("recipe=dpo", "lora=none", *PAIRS, *FAST)
    steps = [line for line in run.lines("metrics.jsonl") if "rewards/chosen" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(steps[-1]["rewards/margins"]) > 0.01


@pytest.mark.slow
def test_accuracy_counts_rows_not_batches(cli):
    """Three held-out rows in batches of two: shares are thirds."""
    run = cli("recipe=dpo", *PAIRS, "trainer.per_device_eval_batch_size=2", "trainer.learning_rate=0.05")
    accuracy = run.record["metrics"]["eval_rewards_accuracies"]
    assert accuracy * 3 == pytest.approx(round(accuracy * 3), abs=1e-6)


def test_only_the_two_answers_are_trained_on(cli):
    turns = [
        {"from": "human", "value": "first question"},
        {"from": "gpt", "value": "first answer"},
        {"from": "human", "value": "second question"},
    ]
    chosen, rejected = ({"from": "gpt", "value": text} for text in ("good one", "bad one"))
    rows = write("pairs.jsonl", [{"conversations": turns, "chosen": chosen, "rejected": rejected}] * 2)
    run = cli("recipe=dpo", "data=file", f"data.path={rows}", *TINY[:-3], "trainer.max_steps=1")
    assert run.code == 0
    end = len(["<|im_end|>"])
    trained = run.record["data"]["train"]["trained_tokens"]
    assert trained == 2 * (len("good one") + len("bad one") + 2 * end)


def test_conversations_with_the_same_beginning_are_one_prompt(cli):
    prompt = [{"role": "user", "content": "2+2?"}]
    sides = [[*prompt, {"role": "assistant", "content": text}] for text in ("4", "5")]
    rows = write("pairs.jsonl", [{"chosen": sides[0], "rejected": sides[1]}])
    assert cli("recipe=dpo", "data=file", f"data.path={rows}", *TINY[:-3], "trainer.max_steps=1").code == 0


def test_equal_answers_are_counted_and_dropped(cli):
    rows = write("pairs.jsonl", [pair(), pair(chosen="5"), pair(prompt="3+3?", chosen="6", rejected="6")])
    run = cli("recipe=dpo", "data=file", f"data.path={rows}", *TINY[:-3], "trainer.max_steps=1")
    assert run.record["data"]["train"]["counts"]["chosen equals rejected"] == 2
    assert run.record["data"]["train"]["rows"] == 1
    assert any("2 of 3 rows dropped: chosen equals rejected" in note for note in run.record["notes"])


def said(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CONFIG_ERROR = [
    ([pair(), pair(rejected=" ")], [":2", "'rejected' is empty"]),
    ([pair(), pair(chosen="")], [":2", "'chosen' is empty"]),
    ([{"prompt": "a", "chosen": "b"}], ["no 'rejected'", "['chosen', 'prompt']"]),
    ([{"question": "a", "chosen": "b", "rejected": "c"}], [":1", "no prompt"]),
    (
        [{side: said(side, "a") for side in ("chosen", "rejected")}],
        [":1", "no two answers to the same prompt"],
    ),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("rows", "said"), CONFIG_ERROR)
def test_rows_that_are_no_pairs_are_refused_by_number(cli, capsys, rows, said):
    write("pairs.jsonl", rows)
    run = cli("recipe=dpo", "data=file", "data.path=pairs.jsonl", *TINY[:-3])
    assert run.code == 2
    assert not run.folder.exists()
    printed = capsys.readouterr().err
    assert [text for text in said if text not in printed] == []


WRONG = [
    (["recipe=dpo", "trainer.loss_type=sigmod"], "did you mean 'sigmoid'"),
    (["recipe=dpo", "trainer.loss_type=exo_pair"], "label_smoothing"),
    (
        ["recipe=dpo", "trainer.loss_type=aot", "trainer.f_divergence_type=forward_kl"],
        "not defined for the loss aot",
    ),
    (["recipe=kto", "trainer.per_device_train_batch_size=1"], "at least 2"),
    (["recipe=dpo", "adapter=[., .]"], "takes one adapter, got 2"),
    (["recipe=dpo", "lora.task_type=SEQ_CLS"], "recipe=classify or reward"),
    (["export=gguf"], "export has no effect with recipe=sft"),
    (["chat.temperature=2"], "chat.temperature has no effect with recipe=sft"),
    (["recipe=dpo", "adapter=nowhere"], "nothing is at 'nowhere'"),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("words", "said"), WRONG)
def test_contradictions_are_refused(cli, capsys, words, said):
    run = cli(*words)
    assert run.code == 2
    assert said in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(cli, parent, capsys):
    """The same architecture and shapes, but other weights: the seed draws them."""
    parent(*TINY)
    run = cli("recipe=dpo", "adapter=start", "seed=1", *PAIRS)
    assert run.code == 2
    assert not run.folder.exists()
    assert "belongs to another base (weights random:tiny, seed 0" in capsys.readouterr().err


def test_an_adapter_keeps_its_shape(cli, parent, capsys):
    parent(*TINY)
    assert cli("recipe=dpo", "adapter=start", "lora.r=4", *PAIRS).code == 2
    assert "has r=16, and keeps it" in capsys.readouterr().err
    assert cli("recipe=dpo", "adapter=start", "lora.target_modules=[q_proj]", *PAIRS).code == 2
    assert "lora.target_modules=[q_proj]: adapter=" in capsys.readouterr().err


def test_an_adapter_of_the_prompt_is_not_trained_further(cli, parent, capsys):
    parent(*TINY, "lora=prompt")
    run = cli("recipe=dpo", "adapter=start", *PAIRS)
    assert (run.code, run.folder.exists()) == (2, False)
    assert "of kind PROMPT_TUNING to use it, not to train it further" in capsys.readouterr().err


def test_a_folder_without_an_adapter_is_refused(cli, capsys):
    Path("empty").mkdir()
    assert cli("recipe=dpo", "adapter=empty", *PAIRS).code == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err


def test_the_mismatched_rows_of_kto_take_the_answer_of_the_row_before():
    batch = {"input_ids": [[1, 2, 7], [3, 8, 9]], "labels": [[-100, -100, 7], [-100, 8, 9]]}
    assert _mismatched(batch) == {
        "KL_input_ids": [[1, 2, 8, 9], [3, 7]],
        "KL_labels": [[-100, -100, 8, 9], [-100, 7]],
    }


def test_padding_keeps_the_mask_of_each_row():
    chosen = {"chosen_input_ids": [5, 6, 7], "chosen_labels": [-100, 6, -100]}
    rows = [chosen | {"rejected_input_ids": [5], "rejected_labels": [5]}]
    batch = PaddedRows(0, {"": ("chosen_", "rejected_")}, ())(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 0], [1, 0, 0]]


def test_liked_and_disliked_answers_of_a_file(cli):
    rows = [{"prompt": "2+2?", "completion": text, "label": text == "4"} for text in ("4", "5", "6", "4 ")]
    write("liked.jsonl", rows)
    run = cli("recipe=kto", "data=file", "data.path=liked.jsonl", *TINY[:-3], "trainer.max_steps=1")
    assert run.code == 0
    assert run.record["data"]["train"]["sources"][0]["format"] == "feedback"


def test_inspect_shows_both_answers_of_a_pair(cli):
    run = cli("recipe=inspect", "trainer=dpo", "data=orders-pairs", "model=tiny", "data.max_rows=2")
    assert run.code == 0
    for row in run.lines("inspect.jsonl"):
        assert row["trained_text"] != row["rejected_text"]
        assert row["trained_text"].endswith("<|im_end|>")
