"""The layer in e4m3 against the theory of its numbers.

Without CUDA its products are computed in float32 from the same numbers, which is open to tests only.
"""

import math

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_model import TINY_MODEL
from runner.config.settings import ModelSettings
from runner.models import base_digest
from runner.models.fp8 import Fp8Config, support
from runner.models.fp8.linear import E4M3, Fp8Linear, quantize_rows, weight_tensors
from runner.models.model import find_base, load_model
from runner.training.load import total_parameters

# e4m3 keeps 3 bits behind the leading one: a number is off by at most half of the last, 2^-4 of itself, and
# the root mean square of a uniform error of that width is 2^-4/sqrt(3) of numbers that are all powers of two.
# Over mantissas from 1 to 2, evenly, it is 2^-4/sqrt(7) of the numbers'. Errors of two factors add up.
WORST, USUAL = 2**-4 / math.sqrt(3), 2**-4 / math.sqrt(7)
LAYERS = 14  # linear ones of the tiny model, without its head


def quantised(weight, bias=None, transposed_copy=False):
    """An ``Fp8Linear`` of a weight [out, in]."""
    layer = Fp8Linear(weight.shape[1], weight.shape[0], bias is not None, weight.dtype, transposed_copy)
    for name, tensor in weight_tensors(weight, transposed_copy).items():
        setattr(layer, name, tensor)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias)
    return layer


def distance(found, exact):
    """Of each row, relative to the norm of the exact one."""
    return (found.double() - exact.double()).norm(dim=-1) / exact.double().norm(dim=-1)


def drawn(rows, columns, seed, dtype=torch.bfloat16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both_products(layer, x, gradient):
    """The output, and the gradient of the input."""
    x = x.clone().requires_grad_(True)
    y = layer(x)
    (found,) = torch.autograd.grad(y, x, gradient)
    return y.detach(), found


@pytest.mark.parametrize("transposed_copy", [False, True])
@pytest.mark.parametrize("spread", [0, 8], ids=["rows alike", "rows from 1e-8 to 1e8"])
def test_both_products_are_as_near_as_e4m3_allows(spread, transposed_copy):
    weight, x, gradient = drawn(96, 256, 0), drawn(64, 256, 1), drawn(64, 96, 2)
    sizes = torch.logspace(-spread, spread, 64)[:, None]  # of one row: its neighbours must not feel it
    x, gradient = (x * sizes).bfloat16(), (gradient * sizes).bfloat16()
    layer = quantised(weight, transposed_copy=transposed_copy)
    y, found = both_products(layer, x, gradient)
    assert y.dtype == found.dtype == torch.bfloat16
    for ours, exact in ((y, x.double() @ weight.double().T), (found, gradient.double() @ weight.double())):
        each = distance(ours, exact)
        assert math.sqrt(2) * USUAL * 0.8 < each.mean() < math.sqrt(2) * WORST
        assert each.max() < 2 * math.sqrt(2) * WORST


def test_a_column_of_outliers_leaves_the_other_numbers_their_precision():
    """The outlier features of large models (arXiv:2208.07339), 1,000 times the others: e4m3 spans 2^15."""
    weight, x = drawn(96, 256, 0), drawn(64, 256, 1)
    x[:, 7] *= 1000
    y, _ = both_products(quantised(weight), x, drawn(64, 96, 2))
    assert distance(y, x.double() @ weight.double().T).max() < math.sqrt(2) * 2**-4
    codes, scales = quantize_rows(x)
    others = torch.arange(256) != 7
    assert distance(codes.float()[:, others] * scales, x[:, others]).max() < 1.2 * WORST


def test_a_number_is_off_by_at_most_a_sixteenth_of_itself():
    x = drawn(64, 256, 3, torch.float32)
    codes, scales = quantize_rows(x)
    assert codes.dtype == E4M3
    assert torch.equal(codes.float().abs().amax(dim=1), torch.full((64,), 448.0))
    least = 2**-6 * scales  # below are e4m3's subnormal numbers, a fixed distance apart
    off = (codes.float() * scales - x).abs()
    assert bool((off <= torch.maximum(x.abs(), least) * 2**-4 * 1.0001).all())


def test_rows_of_zeros_stay_and_rows_that_are_not_finite_are_not_hidden():
    x = drawn(4, 32, 0)
    x[0], x[1, 3], x[2, 3] = 0, math.nan, math.inf
    x[3] = 1e-38
    y, gradient = both_products(quantised(drawn(48, 32, 1)), x, torch.zeros(4, 48, dtype=torch.bfloat16))
    assert not y[0].any()
    assert not gradient.any()
    assert bool(y[1].isnan().all())
    assert not bool(y[2].isfinite().any())
    assert bool(y[3].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_gradient_is_that_of_the_forward_pass_s_weight(dtype):
    """Not of the weight before it was quantised, and not of one quantised by columns."""
    layer = quantised(drawn(96, 256, 0, dtype), bias=drawn(1, 96, 4, dtype)[0])
    x, gradient = (
        drawn(2 * 3, 256, 1, dtype).unflatten(0, (2, 3)),
        drawn(6, 96, 2, dtype).unflatten(0, (2, 3)),
    )
    y, found = both_products(layer, x, gradient)
    codes, scales = layer.weight.double(), layer.weight_scale.double()
    rows, row_scales = (part.double() for part in quantize_rows(x))
    assert distance(y, (rows * row_scales) @ (codes * scales).T + layer.bias.double()).max() < 2**-8
    scaled, its_scales = (
        part.double() for part in quantize_rows(gradient.float() * layer.weight_scale[:, 0])
    )
    assert distance(found, (scaled * its_scales) @ codes).max() < 2**-8
    assert distance(found, gradient.double() @ layer.dequantize().double()).max() < 2 * WORST
    assert y.dtype == found.dtype == dtype


def test_nothing_but_the_weight_is_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        quantised(drawn(48, 32, 0))(drawn(1000, 32, 1).requires_grad_(True))
    assert sorted(tuple(tensor.shape) for tensor in kept) == [(48, 1), (48, 32)]
    assert sum(tensor.nbytes for tensor in kept) == 48 * 32 + 48 * 4


def test_it_compiles_as_one_graph_with_the_same_numbers():
    """And without keeping the transposed weights, which the compiler might compute in the forward pass."""
    layer = torch.nn.Sequential(quantised(drawn(48, 32, 0)), torch.nn.SiLU(), quantised(drawn(64, 48, 1)))
    whole = {"backend": "aot_eager_decomp_partition", "fullgraph": True, "dynamic": False}
    compiled = torch.compile(layer, **whole)
    x, gradient = drawn(5, 32, 2), drawn(5, 64, 3)
    results = (both_products(each, x, gradient) for each in (compiled, layer))
    for ours, plain in zip(*results, strict=True):
        assert torch.equal(ours, plain)
    kept = compiled(x.requires_grad_(True)).grad_fn.saved_tensors
    assert [tuple(each.shape) for each in kept if each.dtype == E4M3] == [(48, 32), (64, 48)]


def test_a_checkpoint_is_loaded_like_drawn_weights_and_keeps_head_and_identity(anywhere, tiny_model):
    files = find_base(ModelSettings(path=str(tiny_model)))
    loaded = load_model(files, Fp8Config(), torch.bfloat16, seed=0)
    random = load_model(find_base(TINY_MODEL), Fp8Config(), torch.float32, seed=0)
    layers = {name: module for name, module in loaded.named_modules() if isinstance(module, Fp8Linear)}
    assert len(layers) == LAYERS
    full = load_file(tiny_model / "model.safetensors")
    for name, layer in layers.items():
        assert distance(layer.dequantize(), full[f"{name}.weight"]).max() < 1.2 * WORST
        assert {layer.weight.dtype, random.get_submodule(name).weight.dtype} == {E4M3}
    assert type(loaded.lm_head) is torch.nn.Linear
    assert loaded.dtype == loaded.lm_head.weight.dtype == torch.bfloat16
    assert total_parameters(loaded) == total_parameters(load_model(files, None, torch.bfloat16, seed=0))
    identity = base_digest.base_identity(files, 0, torch.bfloat16)
    assert identity["weights"] == base_digest.weights_digest(tiny_model)


@pytest.mark.gpu
@pytest.mark.skipif(support.unsupported() is not None, reason="needs tensor cores for e4m3")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("transposed_copy", [False, True])
def test_cuda_computes_what_is_emulated(compiled, transposed_copy):
    """To the rounding of bf16 and of fast accumulation (14 bits on Hopper), which e4m3's own, 3%, dwarfs.

    CUDA divides by 448 by multiplying with its reciprocal: where that changes the last bit of a row's scale,
    numbers halfway between two of e4m3's are rounded to the other one, up to 1.6% of such a row.
    """
    layer = quantised(drawn(1536, 1024, 0), transposed_copy=transposed_copy)
    x, gradient = drawn(1024, 300, 1).t(), drawn(300, 1536, 2)  # one laid out by columns, one by rows
    expected = both_products(layer, x, gradient)
    layer = layer.cuda()
    call = torch.compile(layer, fullgraph=True, dynamic=False) if compiled else layer
    for ours, theirs in zip(both_products(call, x.cuda(), gradient.cuda()), expected, strict=True):
        far = distance(ours.cpu(), theirs)
        assert far.median() < 2**-8
        assert far.max() < 2**-5


@pytest.mark.gpu
@pytest.mark.skipif(support.unsupported() is not None, reason="needs tensor cores for e4m3")
def test_a_cuda_graph_replays_both_products():
    layer = quantised(drawn(256, 128, 0)).cuda()
    x, gradient = drawn(64, 128, 1).cuda().requires_grad_(True), drawn(64, 256, 2).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(layer(x), x, gradient)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
        (found,) = torch.autograd.grad(y, x, gradient)
    with torch.no_grad():
        x.copy_(drawn(64, 128, 5))
    graph.replay()
    expected = both_products(layer, x.detach(), gradient)
    assert torch.equal(y, expected[0])
    assert torch.equal(found, expected[1])
