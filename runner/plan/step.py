"""How a training step is computed, as far as its memory and time depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.config.objective import Objective
from runner.config.recipes.cards import Card
from runner.config.settings import RunConfig
from runner.config.targets import FP8
from runner.parallel.processes import planned_shares
from runner.plan.architecture import Architecture
from runner.plan.trained import Trained
from runner.plan.weights import Zero, zero_of
from runner.speed.pieces import Pieces, choose_pieces

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_PRODUCTS = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Step:
    """How a training step is computed.

    ``weight`` are the bytes of a number of the frozen base (unquantised), ``product`` those of the numbers
    that matrices are multiplied in, which autocast makes where it is less, ``trained`` those of a trained
    number. ``quantization`` is the format of the base's linear layers: ``nf4``, ``fp4``, ``int8``, ``fp8`` or
    nothing. ``sequences`` are those of a row (2 of a pair), ``reference`` says that the frozen policy reads
    them, too, and ``reference_copy`` that it is a second model. ``cells`` share a pass of a pack.
    Of a frozen base each process keeps one of ``parts``; ``zero`` says what it does of one that is trained.
    ``token_loss`` says that the loss is made of the tokens' log-probabilities.
    """

    precision: str
    weight: int
    product: int
    trained: int
    copied: int
    quantization: str
    pieces: Pieces
    checkpointing: bool
    attention: str = "sdpa"
    sequences: int = 1
    reference: bool = False
    reference_copy: bool = False
    on_cuda: bool = True
    cells: int = 1
    optimizer: str = "adamw_torch"
    batch: int = 8
    accumulation: int = 1
    processes: int = 1
    parts: int = 1
    kept_whole: bool = False
    zero: Zero | None = None
    token_loss: bool = True

    @property
    def autocast(self) -> bool:
        """Whether numbers are cast for products."""
        return self.weight != self.product or self.trained != self.product

    @property
    def recomputed(self) -> bool:
        """Whether checkpoints of whole layers are all that is kept of them."""
        return self.checkpointing and not self.pieces.compile

    def lacking(self, card: Card | None) -> str | None:
        """The number format of its products that a CPU, or a card of known rates, cannot compute in; None if
        it can."""
        lacks = not self.on_cuda or (card and card.rate and not card.fp8)
        return "e4m3" if self.quantization == "fp8" and lacks else None


class _Arguments:
    """The trainer's arguments as the config has them, and what is not in it as the libraries' false."""

    def __init__(self, trainer: Mapping[str, Any], precision: str) -> None:
        self._trainer = {**trainer, "fp16": precision == "fp16"}

    def __getattr__(self, name: str) -> Any:
        return self._trainer.get(name)


@dataclass(frozen=True)
class _Width:
    itemsize: int


@dataclass(frozen=True)
class _Precision:
    dtype: _Width
    autocast: _Width | None


def step_of(
    config: RunConfig,
    objective: Objective,
    recipe: str,
    architecture: Architecture,
    trained: Trained,
    native: str = "bf16",
    on_cuda: bool = True,
) -> Step:
    """The step of a training config; ``native`` is the precision that ``auto`` is on the planned device.

    The choices are those of ``runner.models.model.choose_precision`` and ``runner.speed.pieces``, made
    without torch.
    """
    trainer = config.trainer
    name = trainer.get("precision", "auto")
    if name == "auto":
        name = next((known for known in ("bf16", "fp16") if trainer.get(known)), None) or native
    weight = _PRODUCTS[name] if config.lora else 4
    if config.model.dtype != "auto":
        weight = _BYTES[config.model.dtype]
    quantization = _format(config.quantization or architecture.quantization)
    pure = name == "fp32" or (name == "bf16" and quantization and weight == 2)
    product = max(weight, 4) if name == "fp32" else 2
    pieces = _pieces(config, objective, recipe, architecture, trained, name, weight, pure, on_cuda)
    checkpointing = bool(trainer.get("gradient_checkpointing"))
    whole_copy = objective.reference and trained.whole and not trainer.get("precompute_ref_log_probs")
    shares = planned_shares(config)
    return Step(
        precision=name,
        weight=weight,
        product=product,
        # PEFT draws adapters of a 16-bit base in float32; TRL casts those of a quantised one to bfloat16
        trained=(weight if weight >= 4 else 2 if quantization else 4) if config.lora else weight,
        copied=(2 if quantization and weight < 4 else weight if pure else max(4, weight)),
        quantization=quantization,
        pieces=pieces,
        checkpointing=checkpointing,
        attention=config.model.attn_implementation or "sdpa",
        sequences=2 if objective.kind == "preference" else 1,
        reference=objective.reference and not trainer.get("precompute_ref_log_probs"),
        reference_copy=whole_copy,
        on_cuda=on_cuda,
        optimizer=str(trainer.get("optim") or "adamw_torch"),
        batch=shares.size,
        accumulation=shares.turns,
        processes=shares.count,
        parts=shares.count if config.parallel.engine == "fsdp2" else 1,
        kept_whole=not config.parallel.reshard_after_forward,
        zero=zero_of(config.parallel, shares.count),
        token_loss=objective.token_loss,
    )


def _format(quantization: Mapping[str, Any]) -> str:
    if quantization.get("load_in_4bit"):
        return str(quantization.get("bnb_4bit_quant_type") or "fp4")  # transformers' default
    if quantization.get("load_in_8bit"):
        return "int8"
    if quantization.get("_target_") == FP8:
        return "fp8"
    return str(quantization.get("quant_method") or "")


def _pieces(
    config: RunConfig,
    objective: Objective,
    recipe: str,
    architecture: Architecture,
    trained: Trained,
    precision: str,
    weight: int,
    pure: Any,
    on_cuda: bool,
) -> Pieces:
    import dataclasses

    arguments: Any = _Arguments(config.trainer, precision)
    widths: Any = _Precision(_Width(weight), None if pure else _Width(_PRODUCTS[precision]))
    reason = unsupported_loss(architecture, trained)
    if not objective.token_loss:
        reason = f"recipe={recipe} has the library's own loss"
    trainee = dataclasses.replace(config, recipe=recipe)
    pieces = choose_pieces(trainee, arguments, widths, reason, on_cuda)
    if not architecture.causal or (config.model.attn_implementation or "sdpa") != "sdpa":
        for name in ("cuda_graphs", "padding_free"):
            if getattr(pieces, name):
                pieces = pieces.without(name, "the model's attention is not causal SDPA throughout")
    return pieces


def unsupported_loss(architecture: Architecture, trained: Trained) -> str | None:
    """Why the loss is not made of log-probabilities of a frozen head, as ``runner.speed.token_loss``
    finds."""
    if trained.whole:
        return "every weight is trained, the head's too"
    if trained.prompt:
        return "prompt learning has tokens of its own"
    if trained.head:
        return "the output head is not a plain frozen linear layer"
    if architecture.after_head:
        return f"the model changes its logits ({architecture.after_head[0]})"
    if architecture.experts:
        return "a model with experts may have a loss of its own"
    return None
