"""How transformers loads a base in e4m3: each tensor is quantised as it is read, before the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from runner.models.fp8 import support
from runner.models.fp8.linear import Fp8Linear, fits, weight_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "rowwise_fp8"


class Fp8Config(QuantizationConfigMixin):
    """What of a model is loaded as ``Fp8Linear``: its linear layers, without the output head.

    ``modules_to_not_convert`` are names of further modules that stay as they are. ``transposed_copy`` keeps
    each weight a second time, transposed, for the backward pass: one byte a weight more, no transposing.
    """

    def __init__(
        self, modules_to_not_convert: list[str] | None = None, transposed_copy: bool = False, **kwargs: Any
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # an enum of the library's own methods
        self.modules_to_not_convert = modules_to_not_convert
        self.transposed_copy = transposed_copy


def linear_layers(model: PreTrainedModel, config: Fp8Config) -> tuple[list[str], list[str]]:
    """Names of the linear layers that are quantised, and of those that ``torch._scaled_mm`` cannot take."""
    kept = HfQuantizer.get_modules_to_not_convert(
        model, config.modules_to_not_convert, list(model._keep_in_fp32_modules or ()), add_default_skips=True
    )
    taken, left = [], []
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and should_convert_module(name, kept):
            (taken if fits(module.in_features, module.out_features) else left).append(name)
    return taken, left


class _Quantize(ConversionOps):
    """Turns a weight that has been read into the tensors of an ``Fp8Linear``."""

    def __init__(self, transposed_copy: bool) -> None:
        self._transposed_copy = transposed_copy

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        found = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            tensors = weight_tensors(weight, self._transposed_copy)
            found |= {f"{name.removesuffix('weight')}{own}": tensor for own, tensor in tensors.items()}
        return found


class Fp8Quantizer(HfQuantizer):
    """Loads a model with its linear layers as ``Fp8Linear``."""

    requires_calibration = False
    quantization_config: Fp8Config

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises ``RuntimeError`` on a machine that cannot multiply in e4m3."""
        if reason := support.unsupported():
            raise RuntimeError(f"a base in e4m3 cannot be loaded: {reason}")

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor of a checkpoint is the weight of an ``Fp8Linear``."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Fp8Linear) and name == "weight"

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: torch.Tensor) -> float:
        """Bytes of each number of a parameter, by which the loader reserves memory."""
        if not self.param_needs_quantization(model, param_name):
            return param.element_size()
        return 2 if self.quantization_config.transposed_copy else 1

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        for name in linear_layers(model, config)[0]:
            old = model.get_submodule(name)
            new = Fp8Linear(
                old.in_features,
                old.out_features,
                old.bias is not None,
                old.weight.dtype,
                config.transposed_copy,
            )
            model.set_submodule(name, new)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        # By this name TRL and packs know a base with 8 bits a weight, whose adapter is trained in bf16 as
        # that of NF4; whatever else asks for it also asks whether a layer is one of bitsandbytes.
        model.is_loaded_in_8bit = True

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to each weight of an ``Fp8Linear`` that is read."""
        return _Quantize(self.quantization_config.transposed_copy)

    def is_serializable(self) -> bool:
        """No: a base is kept as it was, and merged models are not quantised."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters on it can be trained."""
        return True


register_quantization_config(METHOD)(Fp8Config)
register_quantizer(METHOD)(Fp8Quantizer)
