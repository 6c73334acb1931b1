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
from runner.plan.weights import base_bytes, bytes_in_parts, optimizer_bytes

MIB, GIB = 2**20, 2**30

# What a process takes of a card beside torch's allocator: CUDA's context and the kernels that are loaded, as
# nvidia-smi shows of one that has computed a product.
CONTEXT = 500 * MIB
# Workspaces of cuBLAS and cuBLASLt (32 MiB each for every stream on Hopper, and graphs have their own), and
# what the segments of the allocator round up; and what is left between tensors of other sizes, as a share of
# what comes and goes in a step, which is not derived: more where layers are computed again, or gradients come
# as activations go (docs/plan.md has the cells that these shares were fitted to).
WORKSPACE, FRAGMENTATION, FRAGMENTATION_OF_MORE = 256 * MIB, 0.03, 0.08

# Without CUDA: what libraries take of their own code and tables when the first step runs (15 MiB of files, 10
# of tables); and for each shape of a batch, what oneDNN keeps of the kernels that it makes for its products
# (16 to 24 MiB in nine runs of one shape, as much for 2 layers as for 30; 23 a shape, with what is left
# between them, over the 36 shapes of 80 steps of the default job and the 44 of 240), until its cache is full:
# 240 steps of model=tiny, of a hundred shapes, had 620 MiB of kernels from the 40th on, and 1138 with gaps.
LIBRARIES, KERNELS, MOST_KERNELS = 25 * MIB, 23 * MIB, 48
# Freed blocks of logits that smaller tensors have split, as a share of the logits: 0.66 to 0.92 in four runs
# whose loss was made at once, 1.26 to 1.67 in four that made it in parts, each of which finds the blocks of
# the one before split (SmolLM2-135M; glibc keeps what is freed: runner.core.environment.keep_freed_memory).
GAPS, GAPS_OF_PARTS = 0.8, 1.5
_NO_TENSORS = ("context", "fragmentation", "kernels")

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
    "kernels",
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
        return sum(size for kind, size in self.parts.items() if kind not in _NO_TENSORS)

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
    ``padded`` says that rows have uneven lengths, ``length`` are the tokens of one.
    """

    def __init__(
        self,
        architecture: Architecture,
        trained: Trained,
        step: Step,
        quantization: Mapping[str, Any],
        padded: bool = False,
        length: int = 0,
    ) -> None:
        self._architecture, self._trained, self._step = architecture, trained, step
        self._base = base_bytes(architecture, quantization, step.quantization, step.weight)
        self._resident = resident(architecture, trained, step, quantization)
        self._gradients = gradient_bytes(trained, step)
        self._kept = kept(architecture, trained, step, padded, length)

    def at(self, tokens: int, labelled: int, shapes: int = 1) -> Memory:
        """The memory for a pass over as many tokens, ``labelled`` of which have a loss; the batches of a run
        have ``shapes`` of them."""
        most = max(self._moments(tokens, labelled), key=lambda parts: sum(parts.values()))
        parts = {**self._resident, **most}
        step = self._step
        if step.reference and step.pieces.cuda_graphs and not step.reference_copy:
            # its forward pass is recorded in memory of its own, which holds a layer at a time
            parts["reference"] += round(self._kept.layer * tokens)
        if step.on_cuda:
            again = step.pieces.compile and step.pieces.activation_memory_budget < 1
            share = FRAGMENTATION_OF_MORE if again or self._trained.whole else FRAGMENTATION
            parts["fragmentation"] = round(share * sum(most.values())) + WORKSPACE
            parts["context"] = CONTEXT
        else:
            logits = logit_bytes(self._architecture, step, tokens, labelled)
            parts["fragmentation"] = round(logits * (GAPS_OF_PARTS if self._in_parts(labelled) else GAPS))
            parts["kernels"] = LIBRARIES + KERNELS * min(shapes, MOST_KERNELS)
        found = [parts] if step.zero is None else [parts, {**parts, **self._after_training()}]
        most = max(found, key=lambda parts: sum(parts.values()))
        return Memory({kind: most[kind] for kind in KINDS if most.get(kind)})

    def _after_training(self) -> dict[str, int]:
        """What differs when a model in parts is whole again in every process, to be saved and to answer."""
        zero, ended = self._step.zero, ("gradients", "optimizer", "activations", "backward", "logits")
        return {"base": zero.whole_again(self._base) if zero else 0, **dict.fromkeys(ended, 0)}

    def _in_parts(self, labelled: int) -> bool:
        return self._step.pieces.chunked_loss and labelled > _part(self._architecture, self._step)

    def _moments(self, tokens: int, labelled: int) -> Iterator[dict[str, int]]:
        architecture, trained, step = self._architecture, self._trained, self._step
        # the sums of weights and their updates, which the backward pass multiplies with, too
        rebuilt = step.weight * trained.rebuilt // (architecture.layers if step.recomputed else 1)
        activations = {"activations": round(self._kept.token * tokens + self._kept.fixed) + rebuilt}
        backward = {"backward": round(backward_bytes(architecture, step, tokens, self._kept.layer))}
        logits = {"logits": logit_bytes(architecture, step, tokens, labelled)}
        gradients = {"gradients": self._gradients}
        graphs = step.pieces.cuda_graphs
        if graphs or step.accumulation > 1 or not trained.whole or step.zero:  # gradients stay, or are few
            yield {**gradients, **activations, **logits, **(backward if graphs else {})}
            yield {**gradients, **activations, **backward}
        else:  # they are freed after each step, and come as activations go
            first = {"gradients": architecture.vocabulary * architecture.hidden * step.weight}  # the head's
            yield {**activations, **logits}
            yield {**first, **activations, **backward}
            yield {**gradients, "backward": max(update_bytes(trained, step), _second(architecture, step))}


def resident(
    architecture: Architecture, trained: Trained, step: Step, quantization: Mapping[str, Any]
) -> dict[str, int]:
    """What stays from step to step, by kind: the base, a copy of it for a reference, adapters, states."""
    base = base_bytes(architecture, quantization, step.quantization, step.weight)
    if step.parts > 1:
        kept = step.quantization, step.weight, step.parts, step.kept_whole, step.on_cuda
        less, more = bytes_in_parts(architecture, *kept)
        base += more - less
    added = sum(map(prod, trained.added)) * step.cells * step.trained
    states = optimizer_bytes(step.optimizer, trained.own, step.weight, step.on_cuda)
    copied = sum(map(prod, trained.copied)) * step.copied
    return {
        "base": step.zero.weights(base) if step.zero else base,
        "reference": base if step.reference_copy else 0,
        "adapter": added + copied,
        "optimizer": step.cells * optimizer_bytes(step.optimizer, trained.added, step.trained, step.on_cuda)
        + optimizer_bytes(step.optimizer, trained.copied, step.copied, step.on_cuda)
        + (step.zero.states(states) if step.zero else states),
    }


def gradient_bytes(trained: Trained, step: Step) -> int:
    """A number for each that is trained, in its own format; of a pack those of a pass, too, which are added
    to those of the cells."""
    times = 2 * step.cells if step.cells > 1 else 1
    own = sum(map(prod, trained.own)) * step.weight
    return (
        sum(map(prod, trained.added)) * times * step.trained
        + sum(map(prod, trained.copied)) * step.copied
        + (step.zero.gradients(own) if step.zero else own)
    )


def update_bytes(trained: Trained, step: Step) -> int:
    """What the optimizer makes on the way: PyTorch's default updates all tensors at once, with a copy of
    each; fused kernels and those of bitsandbytes need none."""
    fused = "fused" in step.optimizer or "bit" in step.optimizer
    return 0 if fused else sum(map(prod, trained.own)) * step.weight


def _second(architecture: Architecture, step: Step) -> int:
    """The gradient that a tied embedding has as table, while that which it has as head waits for it."""
    return architecture.vocabulary * architecture.hidden * step.weight if architecture.tied else 0


def backward_bytes(architecture: Architecture, step: Step, tokens: int, layer: float) -> float:
    """What the backward pass of one layer takes beside what is kept.

    Gradients of the MLP's three inner tensors and of four of the hidden size (float32 in the norms of eager
    layers); the layer itself, where it is computed again; and the largest weight as it is multiplied with:
    de-quantised (4 and 8 bits), transposed (e4m3), or its float32 gradient (when every weight is trained).
    Inductor's code for the backward pass of a Qwen3 layer has seven of the MLP's inner tensors at once: what
    the base and the adapter each give to a gradient is added up later, in one kernel.
    """
    a, p = architecture, step.product
    compiled = step.pieces.compile
    stream = max(step.weight, p) if compiled else max(4, step.weight)
    token = (7 if compiled else 3) * p * max(a.intermediate, a.active) + 4 * stream * a.hidden
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
    last part's gradients while the next is made. On a CPU parts are of 2^24, and beside the logits there are
    three numbers of float32 and a mark (four, where logits are not float32 themselves), then the last part's
    logits and gradients. TRL's own loss of tokens has a tile of 4096 tokens and 32768 words on CUDA, and
    gradients in float32. Where a library's loss wants all logits, as every one does on a CPU, they are there
    once as computed, and in float32 with their log-softmax and its gradient; on a CPU once more, shifted, and
    with the gradient as computed. Scores and classes need none.
    """
    a, p = architecture, step.product
    states = labelled * a.hidden
    if a.head not in {each.name for each in a.linears} or a.head == "score":
        return 0
    if step.pieces.chunked_loss:
        part = _part(a, step)
        if step.on_cuda:
            copies = 2 * p if labelled <= part else 3 * p
        else:
            copies = p + (4 if p < 4 else 0) + 3 * 4 + 1 + (0 if labelled <= part else 2 * p)
        return min(labelled, part) * a.vocabulary * copies + 3 * p * states
    if step.token_loss and step.on_cuda:
        tile = min(labelled, _TRL_TOKENS) * min(a.vocabulary, _TRL_WORDS)
        return p * tile + (p + 4) * states
    return tokens * a.vocabulary * (p + 12 if step.on_cuda else 2 * p + 16)


def _part(architecture: Architecture, step: Step) -> int:
    """Labelled tokens whose logits ``speed.chunked_loss`` makes at once."""
    return max(1, (LOGITS_CUDA if step.on_cuda else LOGITS) // architecture.vocabulary)
