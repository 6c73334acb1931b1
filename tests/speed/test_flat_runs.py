"""Runs on rows of uneven length side by side: their losses are those of the library's own step."""

import json

import pytest
import torch

from runner.speed import decoder as module
from runner.speed.decoder import FastDecoder


@pytest.fixture
def uneven(tmp_path):
    """A run on rows of 2 to 70 words, with dropout and accumulation."""
    rows = [{"text": " ".join(["word"] * (2 + number * 37 % 69))} for number in range(96)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        "model=tiny",
        "data=text",
        f"data.path={tmp_path / 'rows.jsonl'}",
        "trainer.precision=fp32",
        "trainer.max_steps=12",
        "trainer.per_device_train_batch_size=4",
        "trainer.gradient_accumulation_steps=2",
        "trainer.learning_rate=3e-3",
        "lora.lora_dropout=0.1",
    )


def losses(run):
    return [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line]


@pytest.fixture
def side_by_side(monkeypatch):
    """Counts the forward passes that are."""
    taken = []
    before = FastDecoder._flat_hidden
    monkeypatch.setattr(
        FastDecoder, "_flat_hidden", lambda self, *inputs: (taken.append(1), before(self, *inputs))[1]
    )
    return taken


def test_a_run_on_uneven_rows_has_the_losses_of_the_librarys_own_step(cli, uneven, side_by_side):
    run = cli(*uneven, folder="flat")
    assert len(side_by_side) > 12
    plain = cli(*uneven, "speed=plain", folder="plain")
    assert len(losses(plain)) == 12
    assert losses(run) == pytest.approx(losses(plain), abs=1e-5)
    assert run.record["metrics"]["tokens"] == plain.record["metrics"]["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("trainer.precompute_ref_log_probs=true",)])
def test_dpo_on_uneven_pairs_has_the_losses_of_the_librarys_own_step(
    cli, uneven, tmp_path, side_by_side, extra
):
    rows = [
        {"prompt": "say", "chosen": "yes " * (1 + n * 37 % 60), "rejected": "no " * (1 + n * 53 % 71)}
        for n in range(96)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("data=file", f"data.path={tmp_path / 'pairs.jsonl'}", "data.format=preference")
    shared = (*uneven, "recipe=dpo", *words, "trainer.max_steps=4", "generation.samples=0", *extra)
    run = cli(*shared, folder="flat")
    assert len(side_by_side) > (4 if extra else 12)  # policy and reference
    if not extra:  # a fresh adapter changes nothing, to the last bit
        assert run.lines("metrics.jsonl")[0]["rewards/margins"] == 0
    plain = cli(*shared, "speed=plain", folder="plain")
    assert losses(run) == pytest.approx(losses(plain), abs=1e-5)
    assert len(set(losses(plain))) >= 3  # it learns; the first step is warmup


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("ends", "the hidden states of a row depend on the rows beside it"),
        ("positions", "the hidden states of a row depend on its place in the batch"),
    ],
)
def test_a_model_that_mixes_rows_is_found_before_it_trains(cli, uneven, monkeypatch, broken, reason):
    """Models that ignore where rows end, or that number positions themselves."""
    before = FastDecoder._flat_hidden

    def mixed(self, input_ids, position_ids, row_ids, ends):
        if broken == "ends":
            ends = ends[:, [0, -1]]
        else:
            position_ids = torch.arange(position_ids.shape[1])[None] ** 2  # RoPE sees only distances
        return before(self, input_ids, position_ids, row_ids, ends)

    monkeypatch.setattr(module.FastDecoder, "_flat_hidden", mixed)
    shared = (*uneven, "trainer.max_steps=4")
    mixing = cli(*shared, folder="mixing")
    assert mixing.record["speed"]["off"]["padding_free"] == reason
    assert any(reason in note for note in mixing.record["notes"])
    plain = cli(*shared, "speed=plain", folder="plain")
    assert losses(mixing) == pytest.approx(losses(plain), abs=1e-5)


@pytest.mark.slow
def test_the_noise_of_neftune_is_that_of_the_librarys_own_step(cli, uneven):
    """Its size depends on the length of a batch."""
    words = (*uneven, "trainer.max_steps=4", "trainer.neftune_noise_alpha=50")
    run, plain = (cli(*words, f"speed={speed}", folder=speed) for speed in ("auto", "plain"))
    assert "neftune" in run.record["speed"]["off"]["padding_free"]
    assert losses(run) == pytest.approx(losses(plain), abs=1e-5)


@pytest.mark.slow
def test_layers_that_are_computed_again_have_padding(cli, uneven):
    shared = (*uneven, "trainer.max_steps=4")
    run = cli(*shared, "trainer.gradient_checkpointing=true", folder="again")
    assert "gradient_checkpointing" in run.record["speed"]["off"]["padding_free"]
    plain = cli(*shared, "speed=plain", folder="plain")
    assert losses(run) == pytest.approx(losses(plain), abs=1e-5)
