"""Fields of each recipe's own trainer that failed after loading, or did nothing, are refused by key."""

from __future__ import annotations

import json

import pytest

from helpers.command import QUIET, TINY, check, issues

SIDES = ("data=orders-pairs", "data.eval_path=null", "data.metric=null")
DPO = ("recipe=dpo", "trainer=dpo", *SIDES)
KTO = ("recipe=kto", "trainer=kto", *SIDES)
ORPO = ("recipe=orpo", "trainer=orpo", *SIDES)
REWARD = ("recipe=reward", "trainer=reward", *SIDES)
SFT = ("recipe=sft",)
FULL = ("lora=none",)

# The words, and what the one message must say.
REFUSED = [
    (DPO, "trainer.loss_type=[]", "names no loss"),
    (DPO, "trainer.loss_type=[sigmoid,nope]", "'nope' is not allowed"),
    (DPO, "trainer.loss_weights=[0]", "every weight at 0 nothing is trained"),
    (DPO, "trainer.loss_weights=[nan]", "nan is not a number to compute with"),
    (DPO, "trainer.loss_weights=[-1]", "-1 is below zero"),
    (DPO, "trainer.beta=0", "trainer.beta=0: the loss sigmoid has no gradient"),
    (DPO, "trainer.ld_alpha=1.5", "at least 0 and at most 1"),
    (DPO, "trainer.label_smoothing=0.1", "has no effect with trainer.loss_type=['sigmoid']"),
    (DPO, "trainer.loss_type=[robust] trainer.label_smoothing=0.5", "below 0.5"),
    (DPO, "trainer.loss_type=[exo_pair] trainer.label_smoothing=2", "at most 1"),
    (DPO, "trainer.loss_type=[aot] trainer.use_weighting=true", "the loss aot takes apart"),
    (DPO, "trainer.discopop_tau=0.1", "trainer.loss_type=discopop"),
    (DPO, "trainer.loss_type=[discopop] trainer.discopop_tau=0", "above 0"),
    (DPO, "trainer.f_alpha_divergence_coef=2", "trainer.f_divergence_type=alpha_divergence"),
    (DPO, "trainer.padding_free=true", "pads all the same"),
    (DPO, "trainer.pad_to_multiple_of=nope", "'nope' is not allowed"),
    (DPO, "trainer.pad_to_multiple_of=0", "at least 1"),
    (DPO, "trainer.sync_ref_model=true", "the reference is the base without it"),
    ((*DPO, *FULL), "trainer.sync_ref_model=true trainer.precompute_ref_log_probs=true", "contradicts"),
    (DPO, "trainer.ref_model_sync_steps=4", "trainer.sync_ref_model=true"),
    (DPO, "trainer.ref_model_mixup_alpha=0.5", "trainer.sync_ref_model=true"),
    (DPO, "trainer.precompute_ref_batch_size=4", "trainer.precompute_ref_log_probs=true"),
    (DPO, "trainer.precompute_ref_log_probs=true trainer.precompute_ref_batch_size=0", "at least 1"),
    (KTO, "trainer.beta=0", "the loss kto has no gradient"),
    (KTO, "trainer.desirable_weight=0 trainer.undesirable_weight=0", "nothing is trained"),
    (KTO, "trainer.train_sampling_strategy=random", "pairs each row with the one before"),
    (KTO, "trainer.sync_ref_model=true", "the reference is the base without it"),
    (ORPO, "trainer.max_completion_length=8", "set trainer.max_length"),
    (ORPO, "trainer.padding_value=1000000", "the runner chooses it"),
    (ORPO, "trainer.generate_during_eval=true", "set generation.samples"),
    (ORPO, "trainer.is_encoder_decoder=true", "the model says so"),
    (REWARD, "trainer.center_rewards_coefficient=-1", "-1 is below zero"),
    (REWARD, "trainer.pad_to_multiple_of=1000000000", "at most 65536"),
    (SFT, "trainer.packing_strategy=wrapped", "trainer.packing=true"),
]

# What works: not refused.
FINE = [
    (DPO, "trainer.loss_type=[sft] trainer.beta=0"),
    (DPO, "trainer.loss_type=[robust] trainer.label_smoothing=0.1"),
    (DPO, "trainer.loss_type=[sigmoid,discopop] trainer.discopop_tau=0.1"),
    ((*DPO, *FULL), "trainer.sync_ref_model=true trainer.ref_model_sync_steps=1"),
    (KTO, "trainer.desirable_weight=0"),
    (KTO, "trainer.loss_type=apo_zero_unpaired trainer.train_sampling_strategy=random"),
    (ORPO, "trainer.beta=0"),
]

# What depends on the model or the machine.
PLACED = [
    (recipe, words, said)
    for recipe in (SFT, DPO, KTO, REWARD)
    for words, said in [
        ("trainer.router_aux_loss_coef=0.5", "LlamaConfig is no mixture of experts"),
        ("trainer.activation_offloading=true", "moves activations from a CUDA device"),
    ]
    if recipe is not REWARD or "router" not in words
]


def named(cases: list[tuple]) -> list[str]:
    return [f"{case[0][0]} {case[1]}" for case in cases]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("recipe", "words", "said"), REFUSED, ids=named(REFUSED))
def test_a_value_that_the_recipe_cannot_use_is_refused_at_once(recipe, words, said):
    messages = issues("model=tiny", *recipe, *words.split())
    assert len(messages) == 1, messages
    assert said in messages[0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("recipe", "words"), FINE, ids=named(FINE))
def test_a_value_that_the_recipe_reads_is_not_refused(recipe, words):
    assert check("model=tiny", *recipe, *words.split())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("recipe", "words", "said"), PLACED, ids=named(PLACED))
def test_what_needs_another_model_or_machine_is_refused_before_loading(
    cli, capsys, monkeypatch, recipe, words, said
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = cli(*TINY, *QUIET, *recipe, "data.eval_path=null", words)
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not (run.folder / "metrics.jsonl").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_rows_are_padded_to_a_multiple(cli, monkeypatch, tmp_path, recipe):
    from runner.training import preference

    widths = set()
    collate = preference.PaddedRows.__call__

    def seen(self, rows):
        batch = collate(self, rows)
        widths.add(batch["input_ids"].shape[1])
        return batch

    monkeypatch.setattr(preference.PaddedRows, "__call__", seen)
    rows: list[dict[str, object]] = [{"prompt": "a" * n} for n in range(1, 9)]
    for n, row in enumerate(rows):
        dpo = {"chosen": "b" * (n + 1), "rejected": "c"}
        row |= dpo if recipe == "dpo" else {"completion": "b" * (n + 1), "label": n % 2 == 0}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = ("data=file", "data.path=rows.jsonl", f"recipe={recipe}", f"trainer={recipe}")
    plain = cli(*TINY, *QUIET, *data, folder="plain")
    assert any(width % 64 for width in widths)
    widths.clear()
    padded = cli(*TINY, *QUIET, *data, "trainer.pad_to_multiple_of=64", folder="padded")
    assert plain.code == padded.code == 0
    assert widths
    assert not any(width % 64 for width in widths)
    logs = (run.lines("metrics.jsonl") for run in (plain, padded))
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("option", ["prompt", "ptuning"])
def test_adapters_that_a_trainer_fails_with_are_refused(option):
    (issue,) = issues("recipe=orpo", f"lora={option}")
    assert f"conf/lora/{option}.yaml:3: lora._target_: TRL's trainer of recipe=orpo cannot train" in issue
    assert check("recipe=orpo", "lora=prefix")
    assert check("recipe=dpo", f"lora={option}")
