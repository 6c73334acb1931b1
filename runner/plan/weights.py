"""Bytes of what stays on the device for a whole run: the base, trained tensors, the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from runner.config.settings import ParallelSettings
from runner.plan.architecture import Architecture, Linear
from runner.plan.trained import Shape

_BLOCK = 64  # weights of bitsandbytes' 4-bit formats that share a scale (QLoRA, arXiv:2305.14314, section 3)
_SECOND = 256  # scales that share one of the second quantisation
_CODE, _SECOND_CODE = 16 * 4, 256 * 4  # bytes of the tables of both formats, which each layer has
_FP8_MULTIPLE = 16  # what both sides of a weight in e4m3 are multiples of (runner.models.fp8.linear)

# bitsandbytes' 8-bit optimizers: smaller tensors keep states of 32 bits; a scale for every block
_LEAST_8BIT, _BLOCK_8BIT = 4096, 256

# With ZeRO all numbers are float32, and stage 3 has so many of weights whole at a time
# (stage3_max_live_parameters).
_WIDTH, _MOST_WHOLE = 4, 1_000_000_000


def base_bytes(architecture: Architecture, quantization: Mapping[str, Any], kind: str, width: int) -> int:
    """Bytes of the base model, whose linear layers but the head are in the format ``kind``.

    Embeddings, norms, biases, the head and layers that are excepted have ``width`` bytes a number. The
    tables that layers of a 4-bit format share a device copy of are left out.
    """
    total = width * (architecture.parameters - sum(each.weights for each in architecture.linears))
    if architecture.tied:  # the head's weight was not among the parameters
        total += width * sum(each.weights for each in architecture.linears if each.name == architecture.head)
    for each in architecture.linears:
        if architecture.tied and each.name == architecture.head:
            continue
        total += linear_bytes(
            each, quantization, kind if _is_quantized(architecture, quantization, each) else "", width
        )
    return total


def bytes_in_parts(
    architecture: Architecture, kind: str, width: int, parts: int, whole: bool, on_cuda: bool
) -> tuple[int, int]:
    """Bytes of weights that a device has less when each process keeps one of so many ``parts`` of the layers,
    and embeddings that are not tied stay on the host; and those that it has more: two layers at a time, of
    which one is being gathered, or all layers where they stay ``whole``.

    Scales are not sharded: only the weights themselves are parameters.
    """
    bits = {"nf4": 4, "fp4": 4, "int8": 8, "fp8": 8}.get(kind, 8 * width)
    layers = [sum(each.weights for each in linears) * bits // 8 for _, linears in architecture.in_layers()]
    table = width * architecture.vocabulary * architecture.hidden if on_cuda and not architecture.tied else 0
    less = table + sum(layers) - ceil(sum(layers) / parts)
    return less, sum(layers) if whole else sum(sorted(layers)[-2:])


def linear_bytes(linear: Linear, quantization: Mapping[str, Any], kind: str, width: int) -> int:
    """Bytes of a linear layer's weight in a format.

    4-bit: two weights a byte and a float32 scale for 64, or with double quantisation a byte for it, a
    float32 for 256 of these and an offset. int8: a byte and a float32 a row. e4m3: the same, and with
    ``transposed_copy`` the weights twice.
    """
    size = linear.weights
    if kind in ("nf4", "fp4"):
        scales = ceil(size / _BLOCK)
        if quantization.get("bnb_4bit_use_double_quant"):
            return ceil(size / 2) + _CODE + scales + 4 * ceil(scales / _SECOND) + _SECOND_CODE + 4
        return ceil(size / 2) + _CODE + 4 * scales
    if kind == "int8":
        return size + 4 * linear.outputs
    if kind == "fp8":
        if linear.inputs % _FP8_MULTIPLE or linear.outputs % _FP8_MULTIPLE:
            return width * size
        return size * (2 if quantization.get("transposed_copy") else 1) + 4 * linear.outputs
    return width * size


def _is_quantized(architecture: Architecture, quantization: Mapping[str, Any], linear: Linear) -> bool:
    skipped = quantization.get("llm_int8_skip_modules") or quantization.get("modules_to_not_convert") or ()
    return linear.name != architecture.head and not any(
        linear.name == name or linear.name.endswith(f".{name}") or linear.name.startswith(f"{name}.")
        for name in skipped
    )


def optimizer_bytes(optimizer: str, shapes: Iterable[Shape], width: int, on_cuda: bool = True) -> int:
    """Bytes of an optimizer's states for trained tensors of ``width`` bytes a number.

    Adam and its relatives keep two numbers for each one that is trained, Lion, Adagrad and RMSprop one,
    Adafactor a row and a column of a matrix (arXiv:1804.04235), SGD none, AdEMAMix three. PyTorch's are of
    the parameter's own format, those of bitsandbytes float32, or with 8 bits a byte and a float32 for 256
    (arXiv:2110.02861) where a tensor has at least 4096 numbers. Paged ones count as if all were on the
    device. An unknown optimizer counts as Adam.
    """
    name = optimizer.lower()
    states = next((count for family, count in _STATES.items() if family in name), 2)
    total = 0
    for shape in shapes:
        size = prod(shape)
        if "adafactor" in name:
            total += 4 * (sum(shape) if len(shape) > 1 else size)
        elif on_cuda and "8bit" in name and size >= _LEAST_8BIT:
            total += states * (size + 4 * ceil(size / _BLOCK_8BIT))
        elif on_cuda and ("8bit" in name or "32bit" in name or name.startswith("paged_")):
            total += states * 4 * size
        else:
            total += states * width * size
    return total


_STATES = {"ademamix": 3, "adamw": 2, "lion": 1, "adagrad": 1, "rmsprop": 1, "sgd": 0}


@dataclass(frozen=True)
class Zero:
    """How a model of which all is trained is kept by ``processes`` with ZeRO (arXiv:1910.02054, section 5).

    The engine takes steps of a copy of the weights in flat tensors, of which each process has its part, and
    adds gradients up in ``buckets`` numbers of its own. What is ``offloaded`` is in the memory of the host.
    """

    stage: int
    processes: int
    buckets: int
    offloaded: bool

    def weights(self, whole: int) -> int:
        """Of so many bytes of weights."""
        part = ceil(whole / self.processes)
        stepped = 0 if self.offloaded else part
        return stepped + (part + min(whole, _WIDTH * _MOST_WHOLE) if self.stage == 3 else whole)

    def whole_again(self, whole: int) -> int:
        """Of so many bytes of weights, behind the last step: a process has them all, beside its part."""
        return whole + ceil(whole / self.processes)

    def gradients(self, whole: int) -> int:
        """Of so many bytes of gradients."""
        return self._part(whole) + min(whole, _WIDTH * self.buckets)

    def states(self, whole: int) -> int:
        """Of so many bytes of the optimizer's states."""
        return self._part(whole)

    def _part(self, whole: int) -> int:
        return 0 if self.offloaded else ceil(whole / self.processes)


def zero_of(settings: ParallelSettings, processes: int) -> Zero | None:
    """What a config keeps in parts; None where another engine, or none, shares the run."""
    if not settings.zero_stage or processes == 1:
        return None
    # stage 2 fills one bucket while the other is on its way
    buckets = settings.reduce_bucket_size * (2 if settings.zero_stage == 2 and settings.overlap_comm else 1)
    return Zero(settings.zero_stage, processes, buckets, settings.offload_optimizer != "none")
