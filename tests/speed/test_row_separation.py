"""Rows side by side in one line: whether each family keeps them apart is known without weights, and is so."""

import pytest
import torch
from transformers import AutoConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from helpers.command import QUIET, TINY
from helpers.tiny_model import KINDS, SHAPE, build, config_of, random_model, using
from runner.config.settings import ModelSettings
from runner.models.base import Base, byte_tokenizer
from runner.speed.row_separation import mixes_rows

STATE = "carry a state from a row to the one behind"
MASK = "makes no mask of where rows begin"
MIXING = {
    "qwen3_next": STATE,
    "qwen3_5_text": STATE,
    "qwen3_5_moe_text": STATE,
    "granitemoehybrid": STATE,
    "granitemoehybrid-mamba": STATE,
    "granitemoehybrid-dense": MASK,
    "falcon_h1": STATE,
    "nemotron_h": STATE,
    "lfm2": STATE,
    "lfm2_moe": STATE,
    "gpt_oss": MASK,
}
# Of no preset: what else the two reasons were seen in.
OTHERS = {
    "mamba": (STATE, {"state_size": 8}),
    "mamba2": (STATE, {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16}),
    "jamba": (STATE, {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8}),
    "recurrent_gemma": (STATE, {"block_types": ["recurrent", "attention"], "lru_width": 64}),
    "rwkv": (STATE, {"attention_hidden_size": 64}),
    "opt": (MASK, {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": (MASK, {"n_layer": 2, "n_head": 4}),
}


def packed(first: torch.Tensor, second: torch.Tensor) -> dict:
    """The batch that TRL makes of two rows side by side."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    return dict(collate([{"input_ids": row.tolist()} for row in (first, second)]))


def of_second(model, batch: dict, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the last ``length`` tokens, and the gradients that these alone give the model."""
    model.zero_grad()
    batch.pop("labels", None)
    logits = model(**batch, use_cache=False).logits[0, -length:]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return logits.detach(), torch.cat(gradients)


def rows() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, 250, (size,), generator=draw) for size in (13, 13, 9)]


def predicted(config) -> str | None:
    base = Base(ModelSettings(weights="random"), config, byte_tokenizer(), None)
    return mixes_rows(base)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in MIXING])
def test_a_row_that_is_let_through_does_not_feel_its_neighbours(kind):
    assert predicted(config_of(kind)) is None
    model = build(kind)
    one, other, row = rows()
    alone = of_second(model, {"input_ids": row[None]}, len(row))
    for neighbour in (one, other):
        for found, expected in zip(of_second(model, packed(neighbour, row), len(row)), alone, strict=True):
            assert far(found, expected) < 1e-5


def mixes(model) -> bool:
    """Whether a row feels the one before it; transformers may refuse it in the pass."""
    one, other, row = rows()
    try:
        found = [of_second(model.eval(), packed(each, row), len(row))[0] for each in (one, other)]
    except ValueError as error:
        return "can't keep packed sequences apart" in str(error)
    return far(*found) > 1e-2


@pytest.mark.parametrize("kind", MIXING)
def test_a_family_that_mixes_rows_is_known_without_weights(kind):
    assert MIXING[kind] in (predicted(config_of(kind)) or "")
    assert mixes(build(kind))


@pytest.mark.parametrize("kind", OTHERS)
def test_so_are_others(kind):
    from transformers import AutoModelForCausalLM

    reason, shape = OTHERS[kind]
    config = AutoConfig.for_model(kind, **{**SHAPE, "initializer_range": 0.2, **shape})
    assert reason in (predicted(config) or "")
    torch.manual_seed(0)
    assert mixes(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("kind", "key", "reason"),
    [("lfm2", "packing", STATE), ("gpt_oss", "padding_free", MASK)],
)
def test_such_a_run_is_refused_before_anything_is_loaded(
    cli, tmp_path, capsys, monkeypatch, kind, key, reason
):
    model = random_model(tmp_path / "model", kind, **KINDS[kind])
    monkeypatch.setattr("runner.training.load.load_model", lambda *_: pytest.fail("loaded"))
    assert cli(*TINY, *QUIET, *using(model), "lora.lora_dropout=0", f"trainer.{key}=true").code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"trainer.{key}: " in said
    assert reason in said


def test_held_out_rows_alone_are_not_packed(cli, capsys):
    """TRL's collator would not be told where they begin."""
    assert cli(*TINY, *QUIET, "trainer.eval_packing=true").code == 2
    assert "behind the rows before them" in " ".join(capsys.readouterr().err.split())


def test_lines_that_are_cut_anywhere_are_said(cli):
    """A strategy in which rows are meant to follow one another."""
    words = ("trainer.packing=true", "trainer.packing_strategy=wrapped", "trainer.max_steps=1")
    run = cli(*TINY, *QUIET, *words)
    assert run.code == 0
    assert any("every row is read behind the rows before it" in note for note in run.record["notes"])
