"""Which pieces of the ``speed`` section a run has, and why it goes without the others."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from runner.config.settings import RunConfig, SpeedSettings
from runner.models.model import Precision

# Checkpoints of single layers look at the random state, which a graph cannot, and compute layers again where
# the pieces are off; compiled layers have the memory budget in their place.
NO_CHECKPOINTS = "trainer.gradient_checkpointing of layers that are not compiled"

# In the order in which a run needs them: without an earlier one there is none of the later ones.
NAMES = ("chunked_loss", "compile", "cuda_graphs", "padding_free", "async_logging", "cpu_kernels")

# Fields of a model's config that change the logits behind the head, which the chunked loss does not do.
AFTER_HEAD = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


# Called with a piece that a model cannot have, and the reason.
Without = Callable[[str, str], None]


@dataclass(frozen=True)
class Pieces:
    """The pieces that are on, under the names of ``SpeedSettings``; ``off`` has the reason of each other one.

    ``activation_memory_budget`` is the share of a layer's activations that the backward pass finds; it
    computes the others again.
    """

    chunked_loss: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    padding_free: bool = False
    async_logging: bool = False
    cpu_kernels: bool = False
    activation_memory_budget: float = 1.0
    off: dict[str, str] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """One line for people: what is on, then what is off and why, pieces of one reason together."""
        on = [name for name in NAMES if getattr(self, name)]
        if self.compile and self.activation_memory_budget < 1:
            on.append(f"activation_memory_budget={self.activation_memory_budget:g}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.off.items():
            reasons.setdefault(reason, []).append(name)
        off = "; ".join(f"{', '.join(names)} off: {reason}" for reason, names in reasons.items())
        return "; ".join(filter(None, [", ".join(on) or "as the library computes it", off]))

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {name: getattr(self, name) for name in NAMES} | {
            "activation_memory_budget": self.activation_memory_budget if self.compile else None,
            "off": self.off,
        }

    def without(self, name: str, reason: str) -> Pieces:
        """The pieces that are left when one of them, and with it those that need it, cannot be had."""
        off = dict(self.off)
        for later in _needing(name):
            if getattr(self, later):
                off[later] = reason
        return dataclasses.replace(self, **dict.fromkeys(_needing(name), False), off=off)


def choose_pieces(
    config: RunConfig, arguments: Any, precision: Precision, unsupported_loss: str | None, has_cuda: bool
) -> Pieces:
    """The pieces of a run, as far as its config says: the model may still lack what one needs.

    ``arguments`` are the trainer's, ``unsupported_loss`` is why the loss is the library's, if it is.
    """
    settings: SpeedSettings = config.speed
    budget = settings.activation_memory_budget
    if budget is None:
        budget = 0.0 if arguments.gradient_checkpointing else 1.0
    found = Pieces(**dict.fromkeys(NAMES, True), activation_memory_budget=budget)
    found = dataclasses.replace(found, cpu_kernels=not has_cuda)  # no word of them on CUDA
    for name, reason in _reasons(config, arguments, precision, unsupported_loss, has_cuda):
        if getattr(found, name):
            found = found.without(name, reason)
    if arguments.gradient_checkpointing and not found.compile:
        for name in ("cuda_graphs", "padding_free", "cpu_kernels"):
            if getattr(found, name):
                found = found.without(name, NO_CHECKPOINTS)
    return found


def _needing(name: str) -> tuple[str, ...]:
    """A piece, and those that need it: graphs can do without compiled layers."""
    return NAMES if name == "chunked_loss" else (name,)


def _reasons(
    config: RunConfig, arguments: Any, precision: Precision, unsupported_loss: str | None, has_cuda: bool
) -> Iterator[tuple[str, str]]:
    """Pieces that a run cannot have or does not want, with the reason; the most general ones first."""
    for name in NAMES:
        if getattr(config.speed, name) is False:
            yield name, f"speed.{name}=false"
    if unsupported_loss:
        yield "chunked_loss", unsupported_loss
    for key, reason in _OWN_LOSS.items():
        if getattr(arguments, key, None):
            yield "chunked_loss", reason
    if getattr(arguments, "loss_type", "nll") not in ("nll", None) and config.recipe == "sft":
        yield "chunked_loss", f"trainer.loss_type={arguments.loss_type}"
    if config.recipe != "sft":
        yield "async_logging", f"TRL's loss for recipe={config.recipe} reads its metrics in the step"
    if arguments.neftune_noise_alpha:
        for name in ("cuda_graphs", "padding_free"):
            yield name, "trainer.neftune_noise_alpha has the noise depend on the length of a batch"
    if has_cuda and (precision.autocast or precision.dtype).itemsize > 2:
        yield "padding_free", "the flash kernel has no precision=fp32"
    if not has_cuda:
        for name in ("compile", "cuda_graphs", "async_logging"):
            yield name, "no CUDA device"
    if config.parallel.engine == "fsdp2":
        yield "cuda_graphs", "parallel=fsdp2 gathers weights around every layer"
    if not (shutil.which("gcc") or shutil.which("cc")):
        yield "compile", "no C compiler, which Triton needs"
    if arguments.fp16:
        for name in ("cuda_graphs", "async_logging"):
            yield name, "fp16 scales the loss, and waits for it"
    for name in ("compile", "cuda_graphs", "padding_free", "cpu_kernels"):
        yield from ((name, reason) for reason in _not_alone(config, arguments))


_OWN_LOSS = {
    "label_smoothing_factor": "trainer.label_smoothing_factor",
    "packing": "trainer.packing",
    "padding_free": "trainer.padding_free",
    "use_weighting": "trainer.use_weighting",
}


def _not_alone(config: RunConfig, arguments: Any) -> Iterator[str]:
    """What stands around or inside the layers of the model, and would be left out of them."""
    if config.model.device_map:
        yield f"model.device_map={config.model.device_map}"
    if config.model.trust_remote_code:
        yield "model.trust_remote_code"
    lora = config.lora
    if lora and (lora.get("_target_") != "peft.LoraConfig" or lora.get("use_dora")):
        yield "only plain LoRA layers are the same in every step"
    if config.quantization.get("load_in_8bit"):
        yield "int8 looks for outlier columns in every step"
    for key in ("activation_offloading", "use_liger_kernel", "torch_compile", "fsdp", "deepspeed"):
        if getattr(arguments, key, None):
            yield f"trainer.{key}"
    if (getattr(arguments, "gradient_checkpointing_kwargs", None) or {}).get("selective"):
        yield "trainer.gradient_checkpointing_kwargs"


def bucket(length: int) -> int:
    """The length that rows are filled up to: eight steps from a power of two to the next, at least 16 tokens
    apart. So at most one in eight tokens is filling, above 128, and few lengths serve all batches."""
    step = max(16, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


PLAIN = Pieces()
