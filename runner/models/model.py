"""Load or build the base model; decide the number formats it runs in."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.config.settings import ModelSettings, RunConfig
from runner.core import environment
from runner.core.errors import ConfigError, Issue
from runner.models.base import Base, byte_tokenizer, find_base
from runner.models.check_files import tensors_only
from runner.models.check_weights import check_finite, check_report
from runner.models.empty_model import set_classes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
__all__ = ["Base", "Precision", "byte_tokenizer", "choose_precision", "device", "find_base", "load_model"]


@dataclass(frozen=True)
class Precision:
    """Number formats of a run: of the frozen weights, and of the autocast of the step, if there is any."""

    name: str
    dtype: torch.dtype
    autocast: torch.dtype | None


def device() -> torch.device:
    """The device of this process: its CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(config: RunConfig) -> Precision:
    """Resolve ``trainer.precision`` and ``model.dtype``.

    ``auto`` is bf16 where the hardware computes in it (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX),
    fp16 on older CUDA, fp32 elsewhere. With full fine-tuning the weights stay in float32 under autocast,
    since bf16 weights lose small updates. The adapter of a quantised base is trained in bf16, as in the QLoRA
    paper (arXiv:2305.14314, section 3) and in TRL; everything being bf16, its step needs no autocast.
    """
    import torch

    trainer, settings = config.trainer, config.model
    name = trainer.get("precision", "auto")
    if name == "auto":
        name = (
            next((known for known in ("bf16", "fp16") if trainer.get(known)), None)
            or environment.native_precision()
        )
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    dtype = dtypes[name] if config.lora else torch.float32
    if settings.dtype != "auto":
        dtype = getattr(torch, settings.dtype)
    pure = name == "fp32" or (name == "bf16" and config.quantization and dtype == torch.bfloat16)
    return Precision(name, dtype, None if pure else dtypes[name])


def load_model(
    base: Base,
    quantization: Any,
    dtype: torch.dtype,
    seed: int,
    classes: list[str] | None = None,
    on_host: bool = False,
) -> PreTrainedModel:
    """Load the weights, or draw them; ``quantization`` is a transformers quantization config or None.

    Random weights are drawn on the run's device from ``seed`` and then quantised like a checkpoint would be.
    With ``classes`` the model gets a new head, drawn from ``seed``, with one output for each (one class: a
    score) in place of the one for tokens. ``on_host`` leaves the model in the memory of the host, for a
    device that cannot hold all of it.
    """
    import torch
    from transformers import set_seed

    settings, where = base.settings, torch.device("cpu") if on_host else device()
    placement = settings.device_map or ({"": where} if where.type == "cuda" or quantization else None)
    set_seed(seed)
    if base.folder is not None:
        # given as None, it would hide the folder's own quantisation
        quantised = {"quantization_config": quantization} if quantization is not None else {}
        model, report = read_checkpoint(base, classes, dtype=dtype, device_map=placement, **quantised)
        check_report(base, report, classes)
        check_finite(model, str(base.folder))
        return keep_trainable(model)
    model = _drawn(base, classes, dtype, quantization)
    if on_host:
        model.to(where)
    if device().type == "cuda" and (on_host or quantization):
        # they were whole there, as those of a checkpoint never are: no part of the run's peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return model


def _drawn(base: Base, classes: list[str] | None, dtype: torch.dtype, quantization: Any) -> Any:
    """A model of random weights on the run's device."""
    import torch
    from transformers import logging

    logging.disable_progress_bar()
    where = device()
    with torch.device(where):
        model = _kind(base, classes).from_config(base.config, dtype=dtype, **_attention(base.settings))
    if quantization is None:
        return model
    # the library's own loading path quantises the state dict as it would a checkpoint
    quantized = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=dtype,
        device_map=base.settings.device_map or {"": where},
        quantization_config=quantization,
    )
    return keep_trainable(quantized)


def read_checkpoint(base: Base, classes: list[str] | None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model from the files of ``base``, and what transformers reports of it (``missing_keys`` and others).

    ``options`` are those of ``from_pretrained``. Raises ``ConfigError`` for files that do not fit the config.
    """
    from safetensors import SafetensorError
    from transformers import logging

    assert base.folder is not None
    logging.disable_progress_bar()
    settings, verbosity = base.settings, logging.get_verbosity()
    logging.set_verbosity_error()  # its table of missing tensors: they are refused, with their names
    kind = _kind(base, classes)
    head = {"config": base.config} if classes is not None else {}
    try:
        with tensors_only(base.folder):
            return kind.from_pretrained(
                base.folder,
                **head,
                **options,
                trust_remote_code=settings.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to be told which: they are refused
                **_attention(settings),
            )
    except (AttributeError, ImportError, TypeError) as error:
        if not settings.trust_remote_code:
            raise
        message = f"the modelling code that {settings.path} brings fails on this transformers: {error}"
        raise ConfigError(
            Issue("model.path", message, "model.weights=random builds its shape natively")
        ) from error
    except SafetensorError as error:
        raise ConfigError(Issue("model.path", f"a file of {base.folder} is damaged: {error}")) from error
    finally:
        logging.set_verbosity(verbosity)


def check_weights(base: Base, classes: list[str] | None = None) -> list[str]:
    """Compare a checkpoint's files with the model, reading no weights, and return warnings.

    ``classes`` are the outputs of a head that is new. What cannot be tried on an empty model (remote code,
    weights that are quantised themselves) is checked when it is loaded. Raises ``ConfigError``.
    """
    quantised = getattr(base.config, "quantization_config", None) is not None
    if base.folder is None or base.settings.trust_remote_code or quantised:
        return []
    # on a copy, which a new head may change
    tried = dataclasses.replace(base, config=copy.deepcopy(base.config))
    _, report = read_checkpoint(tried, classes, device_map="meta")
    return check_report(base, report, classes)


def _kind(base: Base, classes: list[str] | None) -> Any:
    """The class of transformers that the model is loaded with; a new head of ``classes`` joins the config."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if classes is None:
        return AutoModelForCausalLM
    set_classes(base.config, classes, base.tokenizer.pad_token_id)
    return AutoModelForSequenceClassification


def _attention(settings: ModelSettings) -> dict[str, Any]:
    return {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}


def keep_trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Stop bitsandbytes from repacking 4-bit weights for CPU inference.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks them at the first forward pass without gradients and
    never back: every later backward pass through such a layer gives no gradient, without a word. Layers
    whose width is no multiple of 64 it cannot repack, and raises an error in that pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    return model
