"""How long a step takes on a card: an estimate, from counted operations and bytes and measured constants.

A pass (forward and backward of one batch) takes the time of its matrix products, of reading and writing
activations and weights, and of what each kernel takes however small it is; or what Python takes to launch
all kernels, where no graph is replayed, if that is longer:

    max(operations / (share x rate) + bytes / bandwidth + kernels x seconds, launches x seconds)

The constants were adjusted to the speeds of an H200 in docs/plan.md, and the formula is within 14% of those
same figures: how far it is off elsewhere has not been measured, and on another card the constants are an
assumption. A data loader that does not keep up, evaluation, checkpoints and compilation are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from runner.config.recipes.cards import Card
from runner.plan.activations import kept
from runner.plan.architecture import Architecture
from runner.plan.flops import ModelSize, step_flops
from runner.plan.step import Step
from runner.plan.trained import Trained
from runner.plan.weights import linear_bytes

# Of a published rate, what a product of 8192 x 8192 in bf16 reaches on an H200 (700 of 989 TFLOP/s), and of
# that what the products of a model reach.
REACHED, SHARE = 0.71, 0.9
BANDWIDTH = 0.83  # of the published one, what a copy reaches
# Times that what can be kept of a layer is read or written by all kernels of both passes, compiled or not.
MOVED, MOVED_EAGER = 11, 20
# Kernels of a layer's two passes; of compiled ones over 4 bits, which take one to unpack a weight and none to
# cast an adapter (a step of Qwen3-1.7B: 2,892, over bf16 3,676); seconds of one with next to nothing to do.
KERNELS, KERNELS_4BIT, KERNEL = 125, 98, 2.6e-6
# Seconds that a layer's two passes take to be launched: by compiled code, and one by one from Python.
COMPILED, EAGER = 3.1e-3, 6.8e-3
GATHERED = 8.4e-3  # what it takes more where its weights are gathered: Qwen3-8B on two H200, one run
_FP8 = 2.0  # as many products of e4m3 in a second as of bfloat16
_MOVED_4BIT = 2 * 2  # of a 4-bit weight in each pass: written as 16-bit number, and read as such


@dataclass(frozen=True)
class Duration:
    """Seconds of a pass and of an optimizer step, and the share of the rate that the pass's operations
    make."""

    one_pass: float
    step: float
    mfu: float


def model_size(architecture: Architecture, trained: Trained) -> ModelSize:
    """What decides the operations of a step, as ``runner.benchmark.flops.model_size`` counts a loaded
    model."""
    inner = [each for each in architecture.linears if each.name != architecture.head]
    head = sum(each.weights for each in architecture.linears) - sum(each.weights for each in inner)
    base = sum(each.weights for each in inner)
    adapters = sum(
        trained.ranks.get(each.name, 0) * (each.inputs + each.outputs) for each in architecture.linears
    )
    return ModelSize(
        frozen=0 if trained.whole else base,
        trained=base if trained.whole else adapters,
        head=head,
        head_trained=trained.head,
        layers=architecture.layers,
        width=architecture.queries,
    )


def duration(
    architecture: Architecture,
    trained: Trained,
    step: Step,
    card: Card,
    lengths: Sequence[int],
    labelled: int,
    rate: float | None = None,
) -> Duration | None:
    """The time of a step whose passes are over rows of ``lengths`` tokens, ``labelled`` of them with a loss.

    ``rate`` is the card's measured one (``recipe=doctor`` shows it); None takes the published. None where the
    card's rates are not known, it cannot compute the step, or a token takes only some of a model's experts.
    """
    if card.rate is None or card.bandwidth is None or architecture.experts or step.lacking(card):
        return None
    rate = rate or REACHED * card.rate
    size = model_size(architecture, trained)
    tokens = sum(lengths)
    useful = step_flops(size, lengths, labelled, step.reference)
    done = useful + _again(step) * 2 * tokens * size.frozen
    all_kept = dataclasses.replace(step.pieces, activation_memory_budget=1.0)
    whole = dataclasses.replace(step, checkpointing=False, pieces=all_kept)
    times = (MOVED if step.pieces.compile else MOVED_EAGER) * (1 + _again(step) / 3)
    moved = times * kept(architecture, trained, whole).made * tokens + _weight_traffic(architecture, step)
    faster = _FP8 if step.quantization == "fp8" else 1.0
    seconds = done / (SHARE * rate * faster) + moved / (BANDWIDTH * card.bandwidth)
    few = step.pieces.compile and step.quantization in ("nf4", "fp4") and step.parts == 1
    kernels = architecture.layers * (KERNELS_4BIT if few else KERNELS)
    seconds = max(seconds + kernels * KERNEL, _launched(architecture, step))
    return Duration(seconds, seconds * step.accumulation, useful / seconds / rate)


def _again(step: Step) -> float:
    """The share of the forward pass that is computed a second time."""
    if step.pieces.compile:
        return 1 - step.pieces.activation_memory_budget
    return 1.0 if step.checkpointing else 0.0


def _weight_traffic(architecture: Architecture, step: Step) -> float:
    """Bytes of weights that the two passes read, and write where they are de-quantised for a product."""
    passes = 2 + _again(step) + (1 if step.reference else 0)
    total = 0.0
    for each in architecture.linears:
        total += passes * linear_bytes(each, {}, step.quantization, step.product)
        if step.quantization in ("nf4", "fp4", "int8"):
            total += passes * _MOVED_4BIT * each.weights
    return total


def _launched(architecture: Architecture, step: Step) -> float:
    if step.pieces.cuda_graphs:
        return 0.0
    seconds = COMPILED if step.pieces.compile else EAGER
    gathered = GATHERED if step.parts > 1 else 0.0
    return architecture.layers * (seconds * (1 + _again(step) / 3) + gathered)
