"""Several adapters become one, in every way of combining them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import ADAPTER, LEARNS
from helpers.merges import MODEL, ONE_FILE, RECORD, adapted, loaded, logits, merge
from helpers.tiny_model import tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def trained(trained):
    """A run that has learnt something, by its overrides, trained once for all tests."""
    return lambda *words: trained(*LEARNS, *words)


def delta(folder: Path, name: str) -> torch.Tensor:
    """What the merged or adapted weights of one layer have over the base's."""
    file = folder / "model/model.safetensors"
    return load_file(file)[name] - tiny_base().state_dict()[name]


LAYER = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["r8", "rslora"])
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_weighted_adapters_add_up(cli, trained, kind, option):
    one, two = (trained(f"lora={option}", "lora.r=8", f"data.max_rows={rows}") for rows in (24, 20))
    for folder, start in (("a", one), ("b", two)):
        assert merge(cli, start, folder=folder).code == 0
    rank = ("merge.svd_rank=16",) if kind == "svd" else ()
    words = ("merge.weights=[0.7,-0.4]", f"merge.combination_type={kind}", *rank)
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 0
    assert run.files() == RECORD | MODEL | ONE_FILE | ADAPTER
    expected = 0.7 * delta(Path("a"), LAYER) - 0.4 * delta(Path("b"), LAYER)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(delta(run.folder, LAYER), expected, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        logits(loaded(run.folder)), adapted(tiny_base(), run.folder / "adapter"), atol=1e-4, rtol=1e-3
    )
    assert [parent["path"] for parent in run.record["parents"]] == [str(one), str(two)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("merge.combination_type=linear",),
        ("merge.combination_type=ties", "merge.density=0.5", "merge.majority_sign_method=frequency"),
        ("merge.combination_type=dare_linear", "merge.density=0.5"),
        ("merge.combination_type=dare_ties_svd", "merge.density=0.5", "merge.svd_rank=4"),
        ("merge.combination_type=magnitude_prune", "merge.density=0.5"),
    ],
    ids=lambda words: words[0],
)
def test_every_combination_gives_an_adapter_and_its_merge(cli, trained, words):
    one, two = trained("lora=r8"), trained("lora=r8", "data.max_rows=20")
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 0
    assert run.files() == RECORD | MODEL | ONE_FILE | ADAPTER
    expected = adapted(tiny_base(), run.folder / "adapter")
    assert (logits(tiny_base()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded(run.folder)), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("merge.weights=[1]",), "1 weights for 2 adapters"),
        (("merge.weights=[nan,1]",), "a weight is not a number"),
        (("merge.weights=[true,1]",), "a weight is not a number"),
        (("merge.weights=[0,0.0]",), "every weight at 0"),
        (("merge.combination_type=ties",), "merge.density"),
        (("merge.density=0.5",), "no effect on linear"),
        (("merge.svd_rank=4",), "no effect on linear"),
        (("merge.majority_sign_method=frequency",), "no effect on linear"),
        (("merge.max_shard_size=big",), "is not a size"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_contradicting_settings_are_refused(cli, trained, capsys, words, said):
    one, two = trained("lora=r8"), trained("lora=r8", "data.max_rows=20")
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 2
    assert said in capsys.readouterr().err
    assert not run.folder.exists()


def test_adapters_that_cannot_be_combined_are_refused_together(cli, trained, capsys):
    plain, dora, ia3, other = trained("lora=r8"), trained("lora=dora"), trained("lora=ia3"), trained()
    run = merge(cli, f"[{plain},{dora},{ia3},{other}]")
    assert run.code == 2
    said = capsys.readouterr().err
    assert "3 config errors" in said
    assert "use_dora" in said
    assert "is IA3" in said
    assert "r=8" in said
    assert "r=16" in said
    assert not run.folder.exists()


def test_a_rank_that_the_layers_have_no_room_for_is_refused(cli, trained, capsys):
    one, two = trained("lora=r8"), trained("lora=r8", "data.max_rows=20")
    run = merge(cli, f"[{one},{two}]", "merge.combination_type=svd", "merge.svd_rank=40")
    assert run.code == 2
    assert "merge.svd_rank=32, or less" in capsys.readouterr().err
    assert not run.folder.exists()


def test_one_adapter_can_be_merged_with_a_weight(cli, trained):
    start = trained("lora=r8")
    assert merge(cli, start, folder="whole").code == 0
    run = merge(cli, start, "merge.weights=[0.5]")
    assert run.code == 0
    torch.testing.assert_close(
        delta(run.folder, LAYER), 0.5 * delta(Path("whole"), LAYER), atol=1e-5, rtol=1e-3
    )


def update_norm(folder: Path) -> float:
    """The norm of what a merge has added to the base, over all layers."""
    base, merged = tiny_base().state_dict(), load_file(folder / "model/model.safetensors")
    return sum(float((merged[name] - base[name]).square().sum()) for name in merged) ** 0.5


@pytest.fixture(scope="session")
def relatives(trained) -> tuple[Path, Path]:
    """An adapter, and one that was trained on from it."""
    first = trained("lora=r8")
    return first, trained(f"adapter={first}", "lora.r=8", "trainer.learning_rate=1e-3")


@pytest.mark.parametrize(
    "words",
    [
        (),
        pytest.param(("merge.combination_type=cat",), marks=pytest.mark.slow),
        pytest.param(("merge.combination_type=svd",), marks=pytest.mark.slow),
        ("merge.combination_type=ties", "merge.density=1.0"),
        ("merge.weights=[0.7,0.3]",),
    ],
    ids=lambda words: "".join(words[:1]) or "default",
)
@pytest.mark.slow
def test_related_adapters_are_averaged_and_said_to_be_related(cli, relatives, words):
    one, two = relatives
    for folder, start in (("a", one), ("b", two)):
        assert merge(cli, start, folder=folder).code == 0
    parts = [update_norm(Path("a")), update_norm(Path("b"))]
    run = merge(cli, f"[{one},{two}]", *words)
    assert run.code == 0
    found = run.record["merge"]["combination"]
    given = [0.7, 0.3] if "merge.weights=[0.7,0.3]" in words else [0.5, 0.5]
    assert found["weights"] == ([1.0, 1.0] if "ties" in "".join(words) else given)
    assert found["norms"] == pytest.approx(parts, rel=1e-3)
    assert found["norm"] == pytest.approx(update_norm(run.folder), rel=1e-3)
    assert found["norm"] == pytest.approx(sum(parts) / 2, rel=0.05), "as large as they are, not four times"
    assert len(found["related"]) == 1
    assert any("continues" in note for note in run.record["notes"])
    assert [part["adapter"] for part in found["parents"]] == [str(one / "adapter"), str(two / "adapter")]
    assert all(part["kl"] < part["kl_of_base"] for part in found["parents"])


def test_weights_that_inflate_are_said(cli, relatives, capsys):
    one, two = relatives
    run = merge(cli, f"[{one},{two}]", "merge.weights=[20,20]")
    assert run.code == 0
    notes = "\n".join(run.record["notes"])
    assert "the combined update is 40 times as large as those of its adapters" in notes
    printed = capsys.readouterr().out
    assert "weight 20, norm of its update" in printed
    assert "top-1 agreement" in printed


def test_a_combination_that_is_none_of_its_adapters_is_said(cli, relatives):
    """It is merged faithfully, which the comparison with itself says, and what was learnt is gone."""
    run = merge(cli, f"[{relatives[0]},{relatives[1]}]", "merge.weights=[-1,-1]")
    assert run.code == 0
    assert run.record["metrics"]["merge_kl"] < 1e-6
    assert any("than the untrained base does" in note for note in run.record["notes"])


@pytest.mark.slow
def test_linear_weights_of_one_adapter_twice_add_up(cli, trained):
    """PEFT's own would give the square of the sum of their roots, which is 4 for two at weight 1."""
    start = trained("lora=r8")
    assert merge(cli, start, folder="whole").code == 0
    for number, (weights, expected) in enumerate((("[1,1]", 2.0), ("[0.5,0.5]", 1.0), ("[1.5,-0.5]", 1.0))):
        run = merge(cli, f"[{start},{start}]", f"merge.weights={weights}", folder=f"twice{number}")
        found, wanted = delta(run.folder, LAYER), expected * delta(Path("whole"), LAYER)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)
