"""The memory of a training step, by kind, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from runner.plan.activations import kept
from runner.plan.architecture import Architecture
from runner.plan.step import Step
from runner.plan.trained import Trained
from runner.plan.weights import base_bytes, optimizer_bytes

MIB, GIB = 2**20, 2**30

# What a process takes of a card beside torch's allocator: CUDA's context and the kernels that are loaded, as
# nvidia-smi shows of one that has computed a product.
CONTEXT = 500 * MIB
# Workspaces of cuBLAS and cuBLASLt (32 MiB each for every stream on Hopper, and graphs have their own), and
# what the segments of the allocator round up; and what is left between tensors of other sizes, the one
# allowance here that is not derived. Rows of many lengths leave more between the graphs of their shapes than
# this: 17.6 GiB were held by a Qwen3-1.7B over NF4 of Alpaca rows, and these formulas say 13.6 (H200).
WORKSPACE, FRAGMENTATION = 256 * MIB, 0.03

LOGITS_CUDA, LOGITS = 2**27, 2**24  # numbers that runner.speed.token_loss holds at once
_TRL_TOKENS, _TRL_WORDS = (
    4096,
    32768,
)  # of a tile of logits in TRL's own loss (trl/kernels/chunked_logprob.py)
KINDS = (
    "base",
    "reference",
    "adapter",
    "gradients",
    "optimizer",
    "activations",
    "backward",
    "logits",
    "fragmentation",
    "context",
)


@dataclass(frozen=True)
class Memory:
    """Bytes by kind at the moment of a step that takes the most."""

    parts: Mapping[str, int]

    @property
    def allocated(self) -> int:
        """What tensors take, as ``torch.cuda.max_memory_allocated`` has it."""
        return sum(size for kind, size in self.parts.items() if kind not in ("context", "fragmentation"))

    @property
    def reserved(self) -> int:
        """What the allocator holds, as ``torch.cuda.max_memory_reserved`` has it."""
        return sum(size for kind, size in self.parts.items() if kind != "context")

    @property
    def total(self) -> int:
        """What the card must have."""
        return sum(self.parts.values())


class StepMemory:
    """The memory of a training step, over batches of any size.

    A step has three moments: the end of the forward pass, when all activations and a part of the logits are
    there; the begin of the backward pass, with what the gradient of one layer takes; and its end, with all
    gradients. The pool of CUDA graphs keeps what both passes take, warm-up included, and the loss has its own
    beside it, as has the pass of a reference.
    ``padded`` says that rows have uneven lengths.
    """

    def __init__(
        self,
        architecture: Architecture,
        trained: Trained,
        step: Step,
        quantization: Mapping[str, Any],
        padded: bool = False,
    ) -> None:
        self._architecture, self._trained, self._step = architecture, trained, step
        self._resident = resident(architecture, trained, step, quantization)
        self._gradients = gradient_bytes(trained, step)
        self._kept = kept(architecture, trained, step, padded)

    def at(self, tokens: int, labelled: int) -> Memory:
        """The memory for a pass over as many tokens, ``labelled`` of which have a loss."""
        most = max(self._moments(tokens, labelled), key=lambda parts: sum(parts.values()))
        parts = {**self._resident, **most}
        step = self._step
        if step.reference and step.pieces.cuda_graphs and not step.reference_copy:
            # its forward pass is recorded in memory of its own, which holds a layer at a time
            parts["reference"] += round(self._kept.layer * tokens)
        if step.on_cuda:
            parts["fragmentation"] = round(FRAGMENTATION * sum(most.values())) + WORKSPACE
            parts["context"] = CONTEXT
        return Memory({kind: parts[kind] for kind in KINDS if parts.get(kind)})

    def _moments(self, tokens: int, labelled: int) -> Iterator[dict[str, int]]:
        architecture, trained, step = self._architecture, self._trained, self._step
        # the sums of weights and their updates, which the backward pass multiplies with, too
        rebuilt = step.weight * trained.rebuilt // (architecture.layers if step.recomputed else 1)
        activations = {"activations": round(self._kept.token * tokens + self._kept.fixed) + rebuilt}
        backward = {"backward": round(backward_bytes(architecture, step, tokens, self._kept.layer))}
        logits = {"logits": logit_bytes(architecture, step, tokens, labelled)}
        gradients = {"gradients": self._gradients}
        graphs = step.pieces.cuda_graphs
        if graphs or step.accumulation > 1 or not trained.whole:  # gradients stay, or are a small part
            yield {**gradients, **activations, **logits, **(backward if graphs else {})}
            yield {**gradients, **activations, **backward}
        else:  # they are freed after each step, and come as activations go
            first = {"gradients": architecture.vocabulary * architecture.hidden * step.weight}  # the head's
            yield {**activations, **logits}
            yield {**first, **activations, **backward}
            yield {**gradients, "backward": update_bytes(trained, step)}


def resident(
    architecture: Architecture, trained: Trained, step: Step, quantization: Mapping[str, Any]
) -> dict[str, int]:
    """What stays from step to step, by kind: the base, a copy of it for a reference, adapters, states."""
    base = base_bytes(architecture, quantization, step.quantization, step.weight)
    added = sum(map(prod, trained.added)) * step.cells * step.trained
    copied = sum(map(prod, trained.copied)) * step.copied
    return {
        "base": base,
        "reference": base if step.reference_copy else 0,
        "adapter": added + copied,
        "optimizer": step.cells * optimizer_bytes(step.optimizer, trained.added, step.trained, step.on_cuda)
        + optimizer_bytes(step.optimizer, trained.copied, step.copied, step.on_cuda)
        + optimizer_bytes(step.optimizer, trained.own, step.weight, step.on_cuda),
    }


def gradient_bytes(trained: Trained, step: Step) -> int:
    """A number for each that is trained, in its own format."""
    return (
        sum(map(prod, trained.added)) * step.cells * step.trained
        + sum(map(prod, trained.copied)) * step.copied
        + sum(map(prod, trained.own)) * step.weight
    )


def update_bytes(trained: Trained, step: Step) -> int:
    """What the optimizer makes on the way: PyTorch's default updates all tensors at once, with a copy of
    each; fused kernels and those of bitsandbytes need none."""
    fused = "fused" in step.optimizer or "bit" in step.optimizer
    return 0 if fused else sum(map(prod, trained.own)) * step.weight


def backward_bytes(architecture: Architecture, step: Step, tokens: int, layer: float) -> float:
    """What the backward pass of one layer takes beside what is kept.

    Gradients of the MLP's three inner tensors and of four of the hidden size (float32 in the norms of eager
    layers); the layer itself, where it is computed again; and the largest weight as it is multiplied with:
    de-quantised (4 and 8 bits), transposed (e4m3), or its float32 gradient (when every weight is trained).
    """
    a, p = architecture, step.product
    compiled = step.pieces.compile
    stream = max(step.weight, p) if compiled else max(4, step.weight)
    token = 3 * p * max(a.intermediate, a.active) + 4 * stream * a.hidden
    budget = step.pieces.activation_memory_budget if compiled else 1.0
    if budget < 1 or step.recomputed:
        token += layer
    inner = [each for each in a.linears if each.name != a.head]
    largest = max((each.weights for each in inner), default=0)
    width = {"nf4": p, "fp4": p, "int8": p, "fp8": 1}.get(step.quantization, 0)
    if step.quantization == "int8":  # products of int8 are int32 before they are scaled
        token += 4 * a.intermediate + a.intermediate
    if step.quantization == "fp8":
        token += a.intermediate
    return token * tokens + largest * width


def logit_bytes(architecture: Architecture, step: Step, tokens: int, labelled: int) -> int:
    """What the loss takes beside the activations: logits, and hidden states with their gradients.

    ``speed.chunked_loss`` holds 2^27 logits of a part of the labelled tokens and as many gradients, and the
    last part's gradients while the next is made; on a CPU 2^24, and six times as many numbers of float32.
    TRL's own loss of tokens has a tile of 4096 tokens and 32768 words, and gradients in float32. Where a
    library's loss wants all logits they are there once as computed, and in float32 with their log-softmax
    and its gradient. Scores and classes need none.
    """
    a, p = architecture, step.product
    states = labelled * a.hidden
    if a.head not in {each.name for each in a.linears} or a.head == "score":
        return 0
    if step.pieces.chunked_loss:
        size = LOGITS_CUDA if step.on_cuda else LOGITS
        part = max(1, size // a.vocabulary)
        copies = 2 * p if labelled <= part else 3 * p
        extra = 0 if step.on_cuda else 4 * 4 + 8
        return min(labelled, part) * a.vocabulary * (copies + extra) + 3 * p * states
    if step.token_loss:
        tile = min(labelled, _TRL_TOKENS) * min(a.vocabulary, _TRL_WORDS)
        return p * tile + (p + 4) * states
    return tokens * a.vocabulary * (p + 12)
