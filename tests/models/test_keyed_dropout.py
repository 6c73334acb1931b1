"""LoRA dropout whose mask is a function of seed, step, layer, row and feature."""

import pytest
import torch

from runner.models.keyed_dropout import DropoutStream, KeyedDropout


def dropped(x: torch.Tensor, rate: float) -> torch.Tensor:
    stream = DropoutStream(x.device)
    layer = KeyedDropout(stream, 0)
    stream.start([1], [rate])
    return layer.train()(x)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_numbers_of_16_bits_are_those_of_float32_rounded_once(rate):
    """A scale rounded to bfloat16 would be up to 0.4% off, the same way in every step."""
    x = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = dropped(x, rate)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, dropped(x.float(), rate).bfloat16())
    assert found.float().mean(dim=(1, 2)).abs().max() < 0.05


def test_as_many_are_dropped_as_the_rate_says():
    found = dropped(torch.ones(4, 64, 256), 0.3)
    assert (found == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert found.mean() == pytest.approx(1, abs=0.02)
