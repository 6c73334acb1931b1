"""Rows side by side without padding: what a row gives and learns is what it would alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.testing import CompileCounter
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny_model import KINDS, SHAPE, TINY_MODEL, build
from runner.models.adapter import add_adapter
from runner.models.keyed_dropout import key_dropout
from runner.models.model import find_base, load_model
from runner.speed.decoder import FastDecoder
from runner.speed.flat import lay_out
from runner.speed.layers import for_any_length
from runner.speed.pieces import Pieces

LENGTHS = (23, 9, 14)
FLAT = Pieces(chunked_loss=True, padding_free=True)


def model(device="cpu", dtype=torch.float32, base=None, lora_dropout=0.2):
    """With an adapter that has learned something, and drops some of its input."""
    base = base or load_model(find_base(TINY_MODEL), None, dtype, seed=0)
    config = LoraConfig(target_modules="all-linear", lora_dropout=lora_dropout, task_type="CAUSAL_LM")
    found = add_adapter(base, config, 0, None).to(device)
    torch.manual_seed(1)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    if lora_dropout:
        stream = key_dropout(found, seed=0)
        assert stream is not None
        stream.at(3)
    return found.train()


def batch(seed=0, lengths=LENGTHS):
    """Random rows, padded, their mask, and the places of all tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 250, (len(lengths), max(lengths)), generator=draw)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask, mask.nonzero().T


def of_row(decoder, found, rows, number, flat=True):
    """Hidden states of the tokens of one row, and what they give to the adapter."""
    device = next(found.parameters()).device
    ids, mask, places = rows
    laid = lay_out(ids, mask, places) if flat else None
    moved = laid and type(laid)(*(each.to(device) for each in laid))
    hidden = decoder(ids.to(device), tuple(places.to(device)), mask.to(device), moved)
    chosen = hidden[places.to(device)[0] == number].float()
    weights = torch.linspace(-1, 1, chosen.numel(), device=device).view_as(chosen)
    found.zero_grad()
    (chosen * weights).sum().backward()
    gradients = [parameter.grad for parameter in found.parameters() if parameter.grad is not None]
    return chosen.detach(), torch.cat([each.flatten().float() for each in gradients])


def far(found, expected):
    """Relative to the norm of what is expected."""
    return float((found - expected).norm() / expected.norm())


def test_a_row_does_not_feel_its_neighbours():
    found = model()
    decoder = FastDecoder(found, FLAT)
    ids, mask, places = batch()
    others = batch(seed=1)[0] * mask
    others[1] = ids[1]
    hidden, gradient = of_row(decoder, found, (ids, mask, places), 1)
    again, gradient_again = of_row(decoder, found, (others, mask, places), 1)
    assert torch.equal(hidden, again)
    assert far(gradient, gradient_again) < 1e-6
    assert not torch.equal(*(of_row(decoder, found, (rows, mask, places), 0)[0] for rows in (ids, others)))


def in_lines(device, dtype, recorded=False):
    """Hidden states of four rows in two lines, and with padding."""
    base = load_model(find_base(TINY_MODEL), None, dtype, seed=0)
    found = get_peft_model(base, LoraConfig(target_modules="all-linear")).to(device).train()
    rows = tuple(each.to(device) for each in batch(lengths=(23, 9, 14, 31)))
    ids, mask, places = rows
    laid = lay_out(*(each.cpu() for each in rows), lines=2)
    assert laid is not None
    assert laid.lines == 2
    assert laid.tokens == 14 + 31
    pieces = Pieces(chunked_loss=True, padding_free=True, cuda_graphs=recorded)
    moved = type(laid)(*(each.to(device) for each in laid))
    decoder = FastDecoder(found, pieces)  # the memory of its graph, in which the result is, ends with it
    hidden = decoder(ids, tuple(places), mask, moved).clone()
    return hidden, FastDecoder(found, Pieces(chunked_loss=True))(ids, tuple(places), mask)


def test_a_batch_may_have_several_lines():
    assert far(*in_lines("cpu", torch.float32)) < 1e-5


def test_lines_that_are_filled_up_keep_their_rows():
    found = model().eval()
    rows = batch(lengths=(23, 9, 14, 31))
    laid = lay_out(*rows, lines=2)
    assert laid is not None
    filled = laid.filled(64, 5)
    assert filled.ends.tolist() == [[0, 23, 32, 45, 64, 64], [0, 14, 45, 45, 64, 64]]
    assert torch.equal(filled.input_ids.flatten()[filled.places], rows[0][tuple(rows[2])])
    decoder = FastDecoder(found, FLAT)
    few, many = (decoder._run(*each[:4]).flatten(0, 1)[each.places] for each in (laid, filled))
    assert far(many, few) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("recorded", [False, True])
def test_a_batch_on_cuda_may_have_several_lines(recorded):
    assert far(*in_lines("cuda", torch.bfloat16, recorded)) < 0.03


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_row_is_what_it_is_with_padding(number):
    found = model()
    for ours, padded in zip(
        of_row(FastDecoder(found, FLAT), found, batch(), number),
        of_row(FastDecoder(found, Pieces(chunked_loss=True)), found, batch(), number),
        strict=True,
    ):
        assert far(ours, padded) < 1e-5


def test_rows_of_one_length_stay_below_each_other(monkeypatch):
    found = model()
    decoder = FastDecoder(found, FLAT)
    monkeypatch.setattr(decoder, "_flat_hidden", lambda *_: pytest.fail("side by side"))
    of_row(decoder, found, batch(lengths=(12, 12)), 0)


def of_kind(kind, **options):
    """A model of an architecture, with an adapter as above."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, "initializer_range": 0.2, **options})
    return model(base=AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("llama", {"attention_dropout": 0.1}, "dropout of attention"),
        (
            "gpt2",
            {"attn_pdrop": 0.0, "resid_pdrop": 0.1},
            "the model has dropout of its own, whose random numbers follow the shape of a batch",
        ),
        (
            "roberta",
            {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            "the model does not number the positions of a row from 0",
        ),
    ],
)
def test_a_model_that_is_another_with_rows_side_by_side_has_padding(kind, options, reason):
    found, said = of_kind(kind, **options), []
    decoder = FastDecoder(found, FLAT, without=lambda *words: said.append(words))
    hidden = []
    for pieces in (decoder, FastDecoder(found, Pieces(chunked_loss=True))):
        torch.manual_seed(2)
        hidden.append(of_row(pieces, found, batch(), 1)[0])
    assert said == [("padding_free", reason)]
    assert torch.equal(*hidden)


# Families whose rows stand side by side; the others have padding. Of those with experts the rounding of
# grouped products decides, which the rows beside a row may change.
SIDE_BY_SIDE = {
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "phi3",
    "glm",
    "gpt2",
    "granitemoehybrid-dense",
}
ROUNDED = {"qwen3_moe", "deepseek_v3", "glm4_moe_lite", "hunyuan_v1_moe"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama4_text"])
def test_a_row_of_any_family_is_what_it_is_with_padding(kind):
    found, said = model(base=build(kind), lora_dropout=0.0), []
    flat = FastDecoder(found, FLAT, without=lambda *words: said.append(words))
    padded = FastDecoder(found, Pieces(chunked_loss=True))
    for ours, theirs in zip(*(of_row(each, found, batch(), 1) for each in (flat, padded)), strict=True):
        assert far(ours, theirs) < 1e-5
    if kind not in ROUNDED:
        assert flat.flat == (kind in SIDE_BY_SIDE), said
    assert [piece for piece, _ in said] == ["padding_free"] * (not flat.flat)


@pytest.mark.parametrize("number", [0, 1])
def test_a_row_whose_tokens_are_in_one_line_drops_what_it_drops_with_padding(number):
    """As in OPT's MLP."""
    found = of_kind("opt", ffn_dim=96, word_embed_proj_dim=64, dropout=0.0)
    said = []
    flat = FastDecoder(found, FLAT, without=lambda *words: said.append(words))
    hidden = of_row(flat, found, batch(), number)[0]
    assert not said
    assert far(hidden, of_row(FastDecoder(found, Pieces()), found, batch(), number)[0]) < 1e-5
    more = batch(lengths=(*LENGTHS, 40))  # the same rows, with more padding
    ids, mask, _ = batch()
    more[0][:3, :23], more[0][:3, 23:] = ids, 0
    more[1][:3, :23] = mask
    assert far(hidden, of_row(FastDecoder(found, Pieces()), found, more, number)[0]) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("recorded", [False, True])
def test_a_row_on_cuda_is_what_it_is_with_padding(recorded):
    """By the flash kernel, within the rounding of bfloat16; recorded ones fill their last row up."""
    found = model("cuda", torch.bfloat16)
    pieces = Pieces(chunked_loss=True, padding_free=True, cuda_graphs=recorded)
    flat, padded = FastDecoder(found, pieces), FastDecoder(found, Pieces(chunked_loss=True))
    for number in range(len(LENGTHS)):
        expected = of_row(padded, found, batch(), number, flat=False)
        for ours, theirs, limit in zip(
            of_row(flat, found, batch(), number), expected, (0.03, 0.05), strict=True
        ):
            assert far(ours, theirs) < limit


def test_layers_are_compiled_once_for_rows_of_any_length():
    """Where torch would compile for the first number of tokens, and again for others."""

    class Layer(torch.nn.Module):
        def forward(self, hidden, position_ids, position_embeddings):
            return hidden * position_embeddings[0] + position_ids[..., None]

    found = []
    for wrap in (lambda call: call, for_any_length):
        torch._dynamo.reset()
        graphs = CompileCounter()
        call = wrap(torch.compile(Layer(), backend=graphs))
        for tokens in (32, 48, 64):
            embeddings = (torch.ones(1, tokens, 8), torch.ones(1, tokens, 8))
            hidden = call(torch.ones(1, tokens, 8), torch.arange(tokens)[None], embeddings)
            assert hidden[0, -1, 0] == tokens
        found.append(graphs.frame_count)
    assert found == [2, 1]
